"""Where top_k and top_p cut a row off, without a sort and without the host.

What the cut-offs keep (``kernels/sample.py`` defines it) is the beginning of the order (z descending, id ascending), so
it is two numbers a row: the lowest key t that is kept, and how many of the ids with that key are, lowest first. A key
is the int32 whose order is that of the float32. With weight(t) = what stands before the first id of key t, in ids
(top_k) or in whole units of mass (top_p), t is the lowest key whose weight is below a target: top_k, or its share of
the mass.

Keys are narrowed down 16-fold a launch, eight launches for ids and eight for mass: each program of (row, chunk of the
vocabulary) weighs its ids above 15 keys of the interval, and each program of the next launch adds these up and picks
the part that holds t. All sums are of integers: neither chunks nor other rows can change them. min_p needs no search:
an id's own ratio decides.

Shapes: N rows, W ids, C chunks of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from specproxy.kernels.draw_rows import CHUNK, DrawRows, cuts_off, is_finite, key_value, load_chunk, order_key
from specproxy.kernels.launching import early, interpreted, let_next_start, wait_for_input

_PARTS = tl.constexpr(16)
_STEPS = tl.constexpr(8)
_UNIT = tl.constexpr(2.0**40)
_LOWEST_KEY = tl.constexpr(-2139095041)
_STATE = tl.constexpr(8)
_NO_LIMIT = tl.constexpr(2**62)
_WARPS = 8


class Cuts(NamedTuple):
    """``found`` [N, 3] int64: the lowest key that is kept, how many ids of that key are, the highest key; ``ties``
    [N, C] int32: ids of that lowest key in each chunk. Undefined where ``cuts_off`` is false."""

    found: Tensor
    ties: Tensor


@triton.jit
def mass_ratio(z, top, LIBDEVICE: tl.constexpr):
    """Probability of z over that of the highest: torch's exp on a card, numpy's in the interpreter."""
    if LIBDEVICE:
        ratio = libdevice.exp(z - top)
    else:
        ratio = tl.exp(z - top)
    return ratio


@triton.jit
def _units(z, top, LIBDEVICE: tl.constexpr):
    """Mass in whole units, 0 where the highest is not finite."""
    ratio = mass_ratio(z, tl.where(is_finite(top), top, float("inf")), LIBDEVICE)
    return (ratio * _UNIT).to(tl.int64)


@triton.jit
def _highest_kernel(
    logits, stride, ids, rows, highest, W, chunks, MAPPED: tl.constexpr, CHUNK: tl.constexpr, EARLY: tl.constexpr
):
    """highest[N, C]: the highest key of each chunk."""
    let_next_start(EARLY)
    wait_for_input(EARLY)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.load(rows.lane + row)
    if lane < 0:
        return
    if not cuts_off(rows, lane):
        return
    x, _ = load_chunk(logits, stride, ids, tl.load(rows.vocab + lane), row, chunk, W, MAPPED, CHUNK)
    z = tl.div_rn(x, tl.load(rows.temperature + lane))
    tl.store(highest + row * chunks + chunk, tl.max(order_key(z), 0))


@triton.jit
def _narrowed(states, sums, top_p, row, step, rows_count, chunks, CHUNKS: tl.constexpr, LIBDEVICE: tl.constexpr):
    """The state after the sums of ``step - 1``: interval (low, high] of t, weight above high, target, ties kept, top.

    The first sums by mass tell the target as well: their column 0 is the mass above what top_k keeps ties of.
    """
    at = states + (row * (2 * _STEPS + 1) + step - 1) * _STATE
    low, high, above = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    target, kept, top = tl.load(at + 3), tl.load(at + 4), tl.load(at + 5)
    column, chunk = tl.arange(0, _PARTS), tl.arange(0, CHUNKS)
    start = sums + (((step - 1) % 2) * rows_count + row) * chunks * _PARTS
    parts = tl.load(start + chunk[:, None] * _PARTS + column[None, :], mask=chunk[:, None] < chunks, other=0)
    weights = tl.sum(parts, 0)
    if step - 1 == _STEPS:
        most = key_value(top.to(tl.int32))
        unit = _units(key_value((low + 1).to(tl.int32)), most, LIBDEVICE)
        share = top_p * (tl.sum(tl.where(column == 0, weights, 0), 0) + kept * unit).to(tl.float64)
        whole = share.to(tl.int64)
        target = tl.maximum(tl.where(whole.to(tl.float64) < share, whole + 1, whole), 1)
    edges = low + ((high - low) * column >> 4)
    weights += above
    fits = (edges > low) & (weights < target)
    above = tl.max(tl.where(fits, weights, above), 0)
    new_high = tl.min(tl.where(fits, edges, high), 0)
    new_low = tl.max(tl.where(fits, low, edges), 0)
    return new_low, new_high, above, target, kept, top


@triton.jit
def _begin_ids(highest, top_k, row, chunks, CHUNKS: tl.constexpr):
    """The state before the first sums of ids. The interval is one key where there is nothing to search."""
    chunk = tl.arange(0, CHUNKS)
    keys = tl.load(highest + row * chunks + chunk, mask=chunk < chunks, other=_LOWEST_KEY)
    top = tl.max(keys, 0).to(tl.int64)
    search = (top_k > 0) & is_finite(key_value(top.to(tl.int32)))
    high = tl.where(search, top, _LOWEST_KEY)
    target = tl.where(search, top_k.to(tl.int64), _NO_LIMIT)
    nothing = top * 0
    return nothing + (_LOWEST_KEY - 1), high, nothing, target, nothing, top


@triton.jit
def _weigh(z, low, high, most, by_mass, out, PARTS: tl.constexpr, LIBDEVICE: tl.constexpr):
    """Of a chunk's ids in the interval (low, high] of keys: weight above low + 1, then above 15 keys between."""
    key = order_key(z)
    inside = (key > low.to(tl.int32)) & (key <= high.to(tl.int32))
    if tl.max(inside.to(tl.int32), 0) == 0:
        tl.store(out + tl.arange(0, PARTS), tl.zeros([PARTS], tl.int64))
    else:
        weight = inside.to(tl.int64)
        if by_mass:
            weight = tl.where(inside, _units(z, most, LIBDEVICE), 0)
        tl.store(out, tl.sum(tl.where(key > (low + 1).to(tl.int32), weight, 0), 0))
        for j in tl.static_range(1, PARTS):
            edge = (low + ((high - low) * j >> 4)).to(tl.int32)
            tl.store(out + j, tl.sum(tl.where(key > edge, weight, 0), 0))


@triton.jit(do_not_specialize=["step"])
def _narrow_kernel(
    logits,
    stride,
    ids,
    rows,
    highest,
    states,
    sums,
    step,
    rows_count,
    W,
    chunks,
    MAPPED: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    LIBDEVICE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One narrowing: sums[2, N, C, 16] int64 of this step, from the state that the last ones lead to."""
    let_next_start(EARLY)
    wait_for_input(EARLY)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.load(rows.lane + row)
    if lane < 0:
        return
    if not cuts_off(rows, lane):
        return
    top_p = tl.load(rows.top_p + lane)
    if step == 0:
        low, high, above, target, kept, top = _begin_ids(highest, tl.load(rows.top_k + lane), row, chunks, CHUNKS)
    else:
        low, high, above, target, kept, top = _narrowed(
            states, sums, top_p, row, step, rows_count, chunks, CHUNKS, LIBDEVICE
        )
    most = key_value(top.to(tl.int32))
    by_mass, first_by_mass = step >= _STEPS, (step == _STEPS) & (top_p < 1.0) & is_finite(most)
    if step == _STEPS:
        kept, low, above = target - above, high - 1, above * 0
        high = tl.where(first_by_mass, top, high)
    if chunk == 0:
        at = states + (row * (2 * _STEPS + 1) + step) * _STATE
        tl.store(at, low)
        tl.store(at + 1, high)
        tl.store(at + 2, above)
        tl.store(at + 3, target)
        tl.store(at + 4, kept)
        tl.store(at + 5, top)
    if (high - low > 1) | first_by_mass:
        x, _ = load_chunk(logits, stride, ids, tl.load(rows.vocab + lane), row, chunk, W, MAPPED, CHUNK)
        z = tl.div_rn(x, tl.load(rows.temperature + lane))
        out = sums + (((step % 2) * rows_count + row) * chunks + chunk) * PARTS
        _weigh(z, low, high, most, by_mass, out, PARTS, LIBDEVICE)


@triton.jit
def _ties_kernel(
    logits,
    stride,
    ids,
    rows,
    states,
    sums,
    found,
    ties,
    rows_count,
    W,
    chunks,
    MAPPED: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    LIBDEVICE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The end of the search: ``Cuts``."""
    let_next_start(EARLY)
    wait_for_input(EARLY)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.load(rows.lane + row)
    if lane < 0:
        return
    if not cuts_off(rows, lane):
        return
    top_p = tl.load(rows.top_p + lane)
    _, key, above, target, kept, top = _narrowed(
        states, sums, top_p, row, 2 * _STEPS, rows_count, chunks, CHUNKS, LIBDEVICE
    )
    if chunk == 0:
        most = key_value(top.to(tl.int32))
        if (top_p < 1.0) & is_finite(most):
            unit = _units(key_value(key.to(tl.int32)), most, LIBDEVICE)
            unit = tl.maximum(unit, 1)
            kept = (target - above + unit - 1) // unit
        tl.store(found + row * 3, key)
        tl.store(found + row * 3 + 1, kept)
        tl.store(found + row * 3 + 2, top)
    x, _ = load_chunk(logits, stride, ids, tl.load(rows.vocab + lane), row, chunk, W, MAPPED, CHUNK)
    z = tl.div_rn(x, tl.load(rows.temperature + lane))
    equal = order_key(z) == key.to(tl.int32)
    tl.store(ties + row * chunks + chunk, tl.sum(equal.to(tl.int32), 0))


def find_cuts(logits: Tensor, rows: DrawRows, ids: Tensor | None) -> Cuts:
    """Where each row of logits [N, W] is cut off; 18 launches. ``ids`` as in ``draw``, which has checked everything."""
    count, width = logits.shape
    chunks = triton.cdiv(width, CHUNK)
    grid, device = (count, chunks), logits.device
    highest = torch.empty(count, chunks, dtype=torch.int32, device=device)
    states = torch.empty(count, 2 * _STEPS.value + 1, _STATE.value, dtype=torch.int64, device=device)
    sums = torch.empty(2, count, chunks, _PARTS.value, dtype=torch.int64, device=device)
    cuts = Cuts(torch.empty(count, 3, dtype=torch.int64, device=device), torch.empty_like(highest))
    source = (logits, logits.stride(0), logits if ids is None else ids, rows)
    kind = {"MAPPED": ids is not None, "CHUNK": CHUNK, "num_warps": _WARPS, **early(logits)}
    search = {"CHUNKS": triton.next_power_of_2(chunks), "LIBDEVICE": not interpreted(), **kind}
    _highest_kernel[grid](*source, highest, width, chunks, **kind)
    for step in range(2 * _STEPS.value):
        _narrow_kernel[grid](*source, highest, states, sums, step, count, width, chunks, PARTS=_PARTS.value, **search)
    _ties_kernel[grid](*source, states, sums, *cuts, count, width, chunks, **search)
    return cuts
