"""Where the rows of a round stand: positions and slots of runs and trees of tokens in every lane, without asking the
host; and which of them begin a page.

Lane l has room for live[l] tokens in the slots of positions base[l] on. Its n rows are the same in every lane
(``Spots``); rows for which there is no room attend to nothing and write to the trash slot.

Shapes: L lanes, n rows of a lane, P pages of a lane, S width of a state, TAIL keys that can stand elsewhere than in the
table's order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from specproxy.kernels.launching import kernels_run
from specproxy.kernels.ragged_rows import FAR, TAIL

_FAR = tl.constexpr(FAR)
_TAIL = tl.constexpr(TAIL)


class Spots(NamedTuple):
    """A lane's rows, in positions from the lane's base on: ``order`` [n] int32, whose slot a row takes; ``depth`` [n]
    int32, the last key it sees, counted along its own path. ``paths`` [n, TAIL] int32: for rows of a tree the slots of
    the keys from ``start`` on, -1 behind the last one; all -1 for a row whose keys stand in the table's order; ``None``
    where that is every row."""

    order: Tensor
    depth: Tensor
    paths: Tensor | None = None
    start: int = 0


class Places(NamedTuple):
    """Written by ``place``, row by row, all [L * n]: ``positions`` int32, -1 for rows that are not real; ``slots``
    int32; ``first`` int32, the first key that is seen; ``turn`` int64: positions, 0 for rows that are not real; and for
    trees ``tail_from`` int32 and ``tails`` [L * n, TAIL] int32, as in RaggedRows."""

    positions: Tensor
    slots: Tensor
    first: Tensor
    turn: Tensor
    tail_from: Tensor
    tails: Tensor


def place_reference(
    tables: Tensor, base: Tensor, live: Tensor, first: Tensor, spots: Spots, page_size: int, trash: int, out: Places
) -> None:
    """The contract in torch."""
    lanes, count = tables.shape[0], spots.order.shape[0]
    real = (spots.order < live[:, None]) & (base[:, None] >= 0)

    def slot_of(at: Tensor, there: Tensor, otherwise: int) -> Tensor:
        page = tables.gather(1, torch.where(there, at // page_size, 0))
        return torch.where(there, page * page_size + at % page_size, otherwise)

    position = base[:, None] + spots.depth
    out.positions.copy_(torch.where(real, position, -1).flatten())
    out.slots.copy_(slot_of(base[:, None] + spots.order, real, trash).flatten())
    out.first.copy_(first[:, None].expand(lanes, count).flatten())
    out.turn.copy_(torch.where(real, position, 0).flatten())
    if spots.paths is not None:
        on_path = (spots.paths >= 0) & real[:, :, None]
        out.tail_from.copy_(torch.where(on_path[:, :, 0], base[:, None] + spots.start, FAR).flatten())
        at = (base[:, None, None] + spots.paths).flatten(1)
        out.tails.copy_(slot_of(at, on_path.flatten(1), 0).view(lanes * count, TAIL))


@triton.jit
def _slot_of(table, position, there, otherwise, PAGE: tl.constexpr):
    """Slots of positions."""
    page = tl.load(table + position // PAGE, mask=there, other=0).to(tl.int64)
    return tl.where(there, page * PAGE + position % PAGE, otherwise).to(tl.int32)


@triton.jit(do_not_specialize=["pages", "n", "start", "trash"])
def _place_kernel(
    tables,
    base,
    live,
    first,
    order,
    depth,
    paths,
    positions,
    slots,
    firsts,
    turn,
    tail_from,
    tails,
    pages,
    n,
    start,
    trash,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    TREE: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < n
    table, begin = tables + lane * pages, tl.load(base + lane)
    spot = tl.load(order + at, mask=inside, other=0)
    real = (spot < tl.load(live + lane)) & (begin >= 0) & inside
    position = begin + tl.load(depth + at, mask=inside, other=0)
    row = lane * n + at
    tl.store(positions + row, tl.where(real, position, -1).to(tl.int32), mask=inside)
    tl.store(slots + row, _slot_of(table, begin + spot, real, trash, PAGE), mask=inside)
    tl.store(firsts + row, tl.load(first + lane) + at * 0, mask=inside)
    tl.store(turn + row, tl.where(real, position, 0).to(tl.int64), mask=inside)
    if TREE:
        key = tl.arange(0, _TAIL)[None, :]
        path = tl.load(paths + at[:, None] * _TAIL + key, mask=inside[:, None], other=-1)
        there = (path >= 0) & real[:, None]
        slot = _slot_of(table, begin + path, there, 0, PAGE)
        tl.store(tails + row[:, None] * _TAIL + key, slot, mask=inside[:, None])
        moved = tl.sum((there & (key == 0)).to(tl.int32), 1) > 0
        tl.store(tail_from + row, tl.where(moved, begin + start, _FAR).to(tl.int32), mask=inside)


def place(
    tables: Tensor, base: Tensor, live: Tensor, first: Tensor, spots: Spots, page_size: int, trash: int, out: Places
) -> None:
    """Place the rows of every lane: tables [L, P] int32, base and live [L] int64, first [L] int32; into ``out``.

    An ordinary launch: what kernels behind it read before they wait (see ``launching.py``) is what it writes, so one
    more ordinary launch must stand between. Raises ValueError where sizes do not fit.
    """
    lanes, count = tables.shape[0], spots.order.shape[0]
    if any(column.shape[0] != lanes * count for column in out):
        raise ValueError(f"place: {count} rows in each of {lanes} lanes; expected {lanes * count} in every column")
    if not kernels_run(tables):
        place_reference(tables, base, live, first, spots, page_size, trash, out)
        return
    _place_kernel[(lanes,)](
        tables,
        base,
        live,
        first,
        spots.order,
        spots.depth,
        spots.order if spots.paths is None else spots.paths,
        *out,
        tables.stride(0),
        count,
        spots.start,
        trash,
        PAGE=page_size,
        BLOCK=triton.next_power_of_2(count),
        TREE=spots.paths is not None,
        num_warps=1,
    )


def page_ends_reference(states: Tensor, turn: Tensor, tables: Tensor, page_size: int, out: Tensor) -> None:
    """The contract of ``store_page_ends`` in torch; it waits for the device."""
    count = turn.shape[0] // tables.shape[0]
    for row, position in enumerate(turn.tolist()):
        if position and position % page_size == 0:
            out[tables[row // count, position // page_size - 1].long()] = states[row]


@triton.jit(do_not_specialize=["pages", "n"])
def _page_ends_kernel(states, turn, tables, out, pages, n, S, PAGE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(turn + row)
    if (position > 0) & (position % PAGE == 0):
        page = tl.load(tables + row // n * pages + position // PAGE - 1).to(tl.int64)
        for start in range(0, S, BLOCK):
            at = start + tl.arange(0, BLOCK)
            tl.store(out + page * S + at, tl.load(states + row * S + at, mask=at < S), mask=at < S)


def store_page_ends(states: Tensor, turn: Tensor, tables: Tensor, page_size: int, out: Tensor) -> None:
    """States [L * n, S] of the positions before ``turn`` [L * n] (see Places), where those begin a page: each to its
    page's row of ``out`` [pages, S], the page that it ends.

    An ordinary launch. Raises ValueError where sizes do not fit.
    """
    rows, width = states.shape
    if rows % tables.shape[0] or turn.shape != (rows,) or out.shape[1:] != (width,) or not states.is_contiguous():
        raise ValueError(
            f"store_page_ends: states {list(states.shape)} of {list(turn.shape)} rows in {tables.shape[0]} lanes, into "
            f"{list(out.shape)}; expected a contiguous state for each row, as wide as those of the pages"
        )
    if not kernels_run(states):
        page_ends_reference(states, turn, tables, page_size, out)
        return
    count = rows // tables.shape[0]
    _page_ends_kernel[(rows,)](
        states, turn, tables, out, tables.stride(0), count, width, PAGE=page_size, BLOCK=1024, num_warps=4
    )
