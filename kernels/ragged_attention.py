"""Attention of ragged rows on a GPU: prompt chunks, decode rows, chains and trees in two launches, bitwise by row.

Contract: that of ``attention.py``. What makes a row's bits its own:

* one tile shape. Rows of a block, times the query heads that share a key head, fill a tile of TILE_ROWS lines, whether
  there is one row or sixteen; a key tile is one page, aligned to absolute position;
* the context is cut into splits at absolute positions: of FINE keys up to WIDE_FROM, of WIDE beyond, so that a short
  context
  still gives work to the whole card and a long one does not drown in partial sums. Each split is one program;
  the last program of a block to arrive combines them, for each row those that the row sees, in their order;
* a tile of which a row sees nothing leaves the row's sums as they are;
* a tree's rows read the splits in which their paths leave the table's order through programs of their own, by slot, so
  that each key stands in the lane of its position on the path, as in a chain.

Softmax follows FlashAttention's online form (Dao et al., arXiv 2205.14135) with split keys (Flash-Decoding).

Shapes: T rows, Hq query heads, Hk key heads, G = Hq / Hk, Dk and Dv head widths, NB blocks, S splits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from specproxy.kernels.attention import Span
from specproxy.kernels.launching import Scratch, early, kernels_run, let_next_start, wait_for_input
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.ragged_rows import TAIL, TILE_ROWS, RaggedRows, RowShape, count_blocks

FINE = tl.constexpr(128)
WIDE = tl.constexpr(1024)
WIDE_FROM = tl.constexpr(4096)
FINE_SPLITS = tl.constexpr(4096 // 128)
TAIL_WIDTH = tl.constexpr(TAIL)

AT_ONCE = tl.constexpr(16)
"""Splits combined in one turn: a number of its own, so that the order of sums does not depend on how many there are."""

LOG2_E = tl.constexpr(1.4426950408889634)

LEAST_PAGE = 16
"""The narrowest tile that the card's matrix units take."""

LEAST_REACH = 1024
"""Keys that a step which is not captured is laid out for at least."""


def plan_ragged(spans: Sequence[Span], slots: Tensor, kv: KVBuffers, group: int) -> RaggedAttention:
    """Attention of a step that is not captured. ``slots`` [T] on the device; ``group``: query heads of a key head at
    most.

    It is laid out for a power of two of keys: a kernel is compiled for each number of splits and scratch memory is kept
    for each, so a prompt that grew by chunks would else compile and allocate anew with every chunk.
    """
    tables = {id(span.table) for span in spans}
    blocks = count_blocks([span.count for span in spans], group)
    end = max((span.end for span in spans), default=1)
    reach = max(LEAST_REACH, 1 << (end - 1).bit_length())
    shape = RowShape(slots.shape[0], max(1, blocks), max(1, len(tables)), reach // kv.page_size)
    host = RaggedRows.allocate(shape, "cpu", pinned=slots.is_cuda)
    host.fill(spans, (), 0, kv.page_size, group)
    rows = RaggedRows(shape, host.buffer.to(slots.device, non_blocking=True))
    plan = RaggedAttention(rows, reach, trees=any(span.words is not None for span in spans), group=group)
    plan.slots = slots
    return plan


def count_splits(keys: int) -> int:
    """Splits of a context of ``keys`` keys."""
    fine = min(keys, int(WIDE_FROM.value))
    return -(-fine // int(FINE.value)) + -(-(keys - fine) // int(WIDE.value))


def ragged_reference(
    rows: RaggedRows,
    kv: KVBuffers,
    layer: int,
    q: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The contract in torch, row by row in float32 or wider: q [T, Hq, Dk] -> [T, Hq * Dv]."""
    shape, (count, heads, _) = kv.shapes[layer], q.shape
    group, wide = heads // shape.heads, torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros(count, heads, shape.v_dim, dtype=q.dtype, device=q.device)
    every = torch.arange(rows.tables.shape[1] * kv.page_size, device=q.device)
    for row, last in enumerate(rows.positions.tolist()):
        first = int(rows.first[row]) if window is None else max(int(rows.first[row]), last - window + 1)
        if last < first:
            continue
        at = every[first : last + 1]
        slots = rows.tables[rows.lanes[row]].long()[at // kv.page_size] * kv.page_size + at % kv.page_size
        tail = at >= rows.tail_from[row]
        slots[tail] = rows.tails[row].long()[(at - rows.tail_from[row])[tail]]
        keys, values = kv.gather(layer, slots[None])
        keys, values = (x[0].to(wide).repeat_interleave(group, 0) for x in (keys, values))
        scores = torch.einsum("hd,hld->hl", q[row].to(wide), keys) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if sinks is not None:
            scores = torch.cat([scores, sinks.to(wide)[:, None]], 1)
        weights = torch.softmax(scores, -1)[:, : len(at)]
        out[row] = torch.einsum("hl,hld->hd", weights, values).to(q.dtype)
    return out.flatten(1)


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


# What changes with a step's size is no constant: each new value would be compiled anew, in the middle of serving.
@triton.jit(do_not_specialize=["window", "NB", "PAGES", "SPLITS"])
def _ragged_kernel(
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
    begin = tl.load(first + row, mask=real, other=0)
    if WINDOW:
        begin = tl.maximum(begin, last - window + 1)
    tail = tl.load(tail_from + row, mask=real, other=1 << 30)
    # Splits that a row has keys in: in those before, which the combination passes over, it need not take part.
    within = (split >= _split_of(tl.maximum(begin, 0))) & (split <= _split_of(tl.maximum(last, 0)))
    # Keys that this program's rows read here: a tree's row reads by itself from the split in which its tail begins.
    own = _split_of(tl.minimum(tail, 1 << 28))
    if alone:
        sees = real & (tail < (1 << 30)) & (split >= own) & within & (last >= 0)
    else:
        sees = real & ((tail == (1 << 30)) | (split < own)) & within & (last >= 0)
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
def _combine_kernel(
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
    let_next_start(EARLY)
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, V_BLOCK)
    last = tl.load(positions + row)
    begin = tl.load(first + row)
    if WINDOW:
        begin = tl.maximum(begin, last - window + 1)
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


class RaggedAttention:
    """``Attention`` (see ``attention.py``) over ``rows``. ``max_keys``: no row's position reaches it."""

    def __init__(self, rows: RaggedRows, max_keys: int, *, trees: bool = True, group: int = TILE_ROWS) -> None:
        """``trees``: whether rows may have tails; without, no programs stand by for them. ``group``: that with which
        ``rows`` was filled."""
        self.rows = rows
        self._group = group
        self.slots = rows.slots.long()
        self._splits = count_splits(max_keys)
        self._trees = trees

    def attend(
        self,
        kv: KVBuffers,
        layer: int,
        q: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See Attention.attend."""
        rows = self.rows
        if not kernels_run(q):
            return ragged_reference(rows, kv, layer, q, scale, window, softcap, sinks)
        shape, buffer, (count, heads, _) = kv.shapes[layer], kv.layers[layer], q.shape
        self._check(kv, heads, shape.heads, q)
        v_block, splits = triton.next_power_of_2(shape.v_dim), self._splits
        cells = count * heads * splits
        partials = Scratch.of(q.device).take("attention values", cells * v_block)
        sums = Scratch.of(q.device).take("attention sums", cells * 2)
        out = torch.empty(count, heads * shape.v_dim, dtype=q.dtype, device=q.device)
        options = early(q)
        blocks = rows.shape.blocks
        _ragged_kernel[(blocks + (count if self._trees else 0), shape.heads, splits)](
            q,
            buffer,
            rows.positions,
            rows.first,
            rows.lanes,
            rows.tables,
            rows.tail_from,
            rows.tails,
            rows.block_row,
            rows.block_count,
            partials,
            sums,
            scale,
            0.0 if softcap is None else softcap,
            window or 0,
            buffer.stride(0),
            q.stride(0),
            blocks,
            rows.shape.pages,
            splits,
            HEADS=heads,
            KV_HEADS=shape.heads,
            K_DIM=shape.k_dim,
            V_DIM=shape.v_dim,
            DEPTH=shape.depth,
            K_BLOCK=triton.next_power_of_2(shape.k_dim),
            V_BLOCK=v_block,
            PAGE=kv.page_size,
            LINES=TILE_ROWS,
            WINDOW=window is not None,
            CAP=softcap is not None,
            num_warps=4,
            num_stages=3,
            **options,
        )
        _combine_kernel[(count, heads)](
            out,
            rows.positions,
            rows.first,
            q if sinks is None else sinks,
            partials,
            sums,
            window or 0,
            splits,
            HEADS=heads,
            V_DIM=shape.v_dim,
            V_BLOCK=v_block,
            WINDOW=window is not None,
            SINKS=sinks is not None,
            num_warps=1,
            **options,
        )
        return out

    def _check(self, kv: KVBuffers, heads: int, kv_heads: int, q: Tensor) -> None:
        """Raises ValueError where the kernel would read what it was not laid out for."""
        if heads % kv_heads or heads // kv_heads > self._group:
            raise ValueError(
                f"ragged attention: {heads} query heads over {kv_heads} key heads, but blocks are cut for groups of at "
                f"most {self._group}; fill the rows with the largest group of any layer"
            )
        if kv.page_size < LEAST_PAGE or kv.page_size & (kv.page_size - 1):
            raise ValueError(
                f"ragged attention: page_size {kv.page_size}, expected a power of two from {LEAST_PAGE} on: a page is "
                "one tile of keys"
            )
        if q.dtype != kv.dtype or q.stride()[1:] != (q.shape[2], 1):
            raise ValueError(
                f"ragged attention: queries are {q.dtype} with strides {q.stride()}, expected {kv.dtype}, as the keys "
                "are, and a row's heads one behind the other"
            )
