"""The kernels of ragged attention (``ragged_attention.py``): one reads a split of keys for a block of rows, one
combines.

Softmax follows FlashAttention's online form (Dao et al., arXiv 2205.14135) with split keys (Flash-Decoding). Positions,
tables and tails are read before a kernel waits for the one in front of it: they are written by a copy before the step.

Letters: as there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from specproxy.kernels.launching import let_next_start, wait_for_input
from specproxy.kernels.ragged_rows import TAIL

FINE = tl.constexpr(128)
WIDE = tl.constexpr(1024)
WIDE_FROM = tl.constexpr(4096)
FINE_SPLITS = tl.constexpr(4096 // 128)
TAIL_WIDTH = tl.constexpr(TAIL)

AT_ONCE = tl.constexpr(16)
"""Splits combined in one turn: a number of its own, so that the order of sums does not depend on how many there are."""

LOG2_E = tl.constexpr(1.4426950408889634)


def count_splits(keys: int) -> int:
    """Splits of a context of ``keys`` keys."""
    fine = min(keys, int(WIDE_FROM.value))
    return -(-fine // int(FINE.value)) + -(-(keys - fine) // int(WIDE.value))


@triton.jit
def _split_of(position):
    """The split in which a position lies."""
    beyond = position - WIDE_FROM
    return tl.where(position < WIDE_FROM, position // FINE, FINE_SPLITS + beyond // WIDE)


@triton.jit
def _start_of(split):
    """The position with which a split begins."""
    return tl.where(split < FINE_SPLITS, split * FINE, WIDE_FROM + (split - FINE_SPLITS) * WIDE)


@triton.jit
def _take_tile(m, total, acc, q, keys, values, seen, scale, softcap, CAP: tl.constexpr):
    """One tile of keys [D, PAGE] and values [PAGE, Dv] into the running maximum, sum and weighted values."""
    scores = tl.dot(q, keys, input_precision="ieee") * scale
    if CAP:
        capped = scores / softcap
        capped = 2.0 / (1.0 + tl.exp2(capped * (-2.0 * LOG2_E))) - 1.0
        scores = capped * softcap
    scores = tl.where(seen, scores * LOG2_E, float("-inf"))
    top = tl.maximum(m, tl.max(scores, 1))
    safe = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp2(scores - safe[:, None])
    shrink = tl.exp2(m - safe)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None]
    acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
    return top, total, acc


@triton.jit
def _begin(first, row, last, window, real, WINDOW: tl.constexpr):
    """The first key that a row sees."""
    begin = tl.load(first + row, mask=real, other=0)
    if WINDOW:
        begin = tl.maximum(begin, last - window + 1)
    return begin


@triton.jit
def _takes_part(alone, split, last, begin, tail):
    """Whether a row reads the split here: it has keys in it, and a tree's row reads by itself from the split in which
    its tail begins."""
    within = (split >= _split_of(tl.maximum(begin, 0))) & (split <= _split_of(tl.maximum(last, 0))) & (last >= 0)
    behind = (tail < (1 << 30)) & (split >= _split_of(tl.minimum(tail, 1 << 28)))
    return within & (behind == alone)


# What changes with a step's size is no constant: each new value would be compiled anew, in the middle of serving.
@triton.jit(do_not_specialize=["window", "NB", "PAGES", "SPLITS"])
def ragged_kernel(
    q,
    kv,
    positions,
    first,
    lanes,
    tables,
    tail_from,
    tails,
    block_row,
    block_count,
    partials,
    sums,
    scale,
    softcap,
    window,
    plane,
    q_row,
    NB,
    PAGES,
    SPLITS,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    DEPTH: tl.constexpr,
    K_BLOCK: tl.constexpr,
    V_BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    LINES: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A split of keys for the rows of a block, or for a row whose tail lies in it: grid (blocks, then rows; key heads;
    splits)."""
    let_next_start(EARLY)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    item, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    line = tl.arange(0, LINES)
    alone = item >= NB
    if alone:
        start, count = item - NB, 1
    else:
        start, count = tl.load(block_row + item), tl.load(block_count + item)
    row = start + line // GROUP
    real = line // GROUP < count
    last = tl.load(positions + row, mask=real, other=-1)
    begin = _begin(first, row, last, window, real, WINDOW)
    tail = tl.load(tail_from + row, mask=real, other=1 << 30)
    sees = real & _takes_part(alone, split, last, begin, tail)
    wait_for_input(EARLY)
    if tl.max(sees.to(tl.int32), 0) == 0:
        return
    last_here = tl.max(tl.where(sees, last, -1), 0)
    first_here = tl.min(tl.where(sees, begin, 1 << 30), 0)
    low = tl.maximum(_start_of(split), first_here // PAGE * PAGE)
    high = tl.minimum(_start_of(split + 1), last_here + 1)
    at_k, at_v = tl.arange(0, K_BLOCK), tl.arange(0, V_BLOCK)
    lane = tl.load(lanes + start)
    query = q + (row.to(tl.int64) * q_row + (head * GROUP + line % GROUP) * K_DIM)[:, None] + at_k[None, :]
    qs = tl.load(query, mask=sees[:, None] & (at_k < K_DIM)[None, :], other=0.0)
    keys_of = kv + head.to(tl.int64) * plane
    values_of = kv + (KV_HEADS + head).to(tl.int64) * plane
    m = tl.full((LINES,), float("-inf"), tl.float32)
    total = tl.zeros((LINES,), tl.float32)
    acc = tl.zeros((LINES, V_BLOCK), tl.float32)
    offset = tl.arange(0, PAGE)
    from_tail = tl.max(tl.where(sees, tail, 0), 0)
    for at in range(low, high, PAGE):
        page = tl.load(tables + lane * PAGES + at // PAGE).to(tl.int64)
        slot = page * PAGE + offset
        position = at + offset
        if alone:
            moved = (position >= from_tail) & (position <= last_here)
            other = tl.load(tails + start * TAIL_WIDTH + position - from_tail, mask=moved, other=0).to(tl.int64)
            slot = tl.where(moved, other, slot)
        keys = tl.load(keys_of + slot[None, :] * DEPTH + at_k[:, None], mask=(at_k < K_DIM)[:, None], other=0.0)
        values = tl.load(values_of + slot[:, None] * DEPTH + at_v[None, :], mask=(at_v < V_DIM)[None, :], other=0.0)
        seen = sees[:, None] & (position[None, :] <= last[:, None]) & (position[None, :] >= begin[:, None])
        m, total, acc = _take_tile(m, total, acc, qs, keys, values, seen, scale, softcap, CAP)
    cell = (row.to(tl.int64) * HEADS + head * GROUP + line % GROUP) * SPLITS + split
    tl.store(sums + cell * 2, m, mask=sees)
    tl.store(sums + cell * 2 + 1, total, mask=sees)
    tl.store(partials + cell[:, None] * V_BLOCK + at_v[None, :], acc, mask=sees[:, None])


@triton.jit(do_not_specialize=["window", "SPLITS"])
def combine_kernel(
    out,
    positions,
    first,
    sinks,
    partials,
    sums,
    window,
    SPLITS,
    HEADS: tl.constexpr,
    V_DIM: tl.constexpr,
    V_BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A row's splits into its result: grid (rows, query heads)."""
    let_next_start(EARLY)
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, V_BLOCK)
    last = tl.load(positions + row)
    begin = _begin(first, row, last, window, True, WINDOW)
    m = float("-inf")
    total = 0.0
    acc = tl.zeros((V_BLOCK,), tl.float32)
    if SINKS:
        m = tl.load(sinks + head).to(tl.float32) * LOG2_E
        total = 1.0
    cell = (row * HEADS + head) * SPLITS
    low, high = _split_of(tl.maximum(begin, 0)), _split_of(tl.maximum(last, 0)) + 1
    if (last < 0) | (last < begin):
        high = low
    wait_for_input(EARLY)
    for start in range(low // AT_ONCE * AT_ONCE, high, AT_ONCE):
        split = start + tl.arange(0, AT_ONCE)
        seen = (split >= low) & (split < high)
        here = tl.load(sums + (cell + split) * 2, mask=seen, other=float("-inf"))
        weight = tl.load(sums + (cell + split) * 2 + 1, mask=seen, other=0.0)
        part = tl.load(partials + (cell + split)[:, None] * V_BLOCK + at[None, :], mask=seen[:, None], other=0.0)
        top = tl.maximum(m, tl.max(here, 0))
        old, new = tl.exp2(m - top), tl.exp2(here - top)
        total = total * old + tl.sum(weight * new, 0)
        acc = acc * old + tl.sum(part * new[:, None], 0)
        m = top
    result = acc / tl.where(total > 0, total, 1.0)
    tl.store(out + (row * HEADS + head) * V_DIM + at, result.to(out.dtype.element_ty), mask=at < V_DIM)
