"""Where the rows of a round stand: positions and slots of a run of tokens in every lane, without asking the host; and
which of them begin a page.

Lane l has live[l] tokens at positions base[l] on. Its n rows are those from the ``skip``-th on; rows for which there is
no token attend to nothing and write to the trash slot.

Shapes: L lanes, n rows of a lane, P pages of a lane, S width of a state.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from specproxy.kernels.launching import kernels_run


class Places(NamedTuple):
    """Written by ``place``, row by row: ``positions`` [L * n] int32, -1 for rows that are not real; ``slots`` [L * n]
    int32; ``first`` [L * n] int32, the first key that is seen; ``turn`` [L * n] int64: positions, 0 for rows that are
    not real."""

    positions: Tensor
    slots: Tensor
    first: Tensor
    turn: Tensor


def place_reference(
    tables: Tensor, base: Tensor, live: Tensor, first: Tensor, skip: int, page_size: int, trash: int, out: Places
) -> None:
    """The contract in torch."""
    lanes = tables.shape[0]
    count = out.positions.shape[0] // lanes
    offset = torch.arange(skip, skip + count, device=tables.device)
    position = base[:, None] + offset
    real = (offset < live[:, None]) & (position >= 0)
    page = tables.gather(1, torch.where(real, position // page_size, 0))
    slots = torch.where(real, page * page_size + position % page_size, trash)
    out.positions.copy_(torch.where(real, position, -1).flatten())
    out.slots.copy_(slots.flatten())
    out.first.copy_(first[:, None].expand(lanes, count).flatten())
    out.turn.copy_(torch.where(real, position, 0).flatten())


@triton.jit(do_not_specialize=["pages", "n", "skip", "trash"])
def _place_kernel(
    tables,
    base,
    live,
    first,
    positions,
    slots,
    firsts,
    turn,
    pages,
    n,
    skip,
    trash,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < n
    position = tl.load(base + lane) + skip + at
    real = (skip + at < tl.load(live + lane)) & (position >= 0) & inside
    page = tl.load(tables + lane * pages + position // PAGE, mask=real, other=0).to(tl.int64)
    slot = tl.where(real, page * PAGE + position % PAGE, trash)
    row = lane * n + at
    tl.store(positions + row, tl.where(real, position, -1).to(tl.int32), mask=inside)
    tl.store(slots + row, slot.to(tl.int32), mask=inside)
    tl.store(firsts + row, tl.load(first + lane) + at * 0, mask=inside)
    tl.store(turn + row, tl.where(real, position, 0).to(tl.int64), mask=inside)


def place(
    tables: Tensor, base: Tensor, live: Tensor, first: Tensor, skip: int, page_size: int, trash: int, out: Places
) -> None:
    """Place the rows of every lane: tables [L, P] int32, base and live [L] int64, first [L] int32; into ``out``.

    An ordinary launch: what kernels behind it read before they wait (see ``launching.py``) is what it writes, so one
    more ordinary launch must stand between. Raises ValueError where sizes do not fit.
    """
    lanes, rows = tables.shape[0], out.positions.shape[0]
    if rows % lanes or any(column.shape != (rows,) for column in out):
        raise ValueError(f"place: {rows} rows in {lanes} lanes; expected as many in each, and in every column")
    if not kernels_run(tables):
        place_reference(tables, base, live, first, skip, page_size, trash, out)
        return
    count = rows // lanes
    _place_kernel[(lanes,)](
        tables,
        base,
        live,
        first,
        *out,
        tables.stride(0),
        count,
        skip,
        trash,
        PAGE=page_size,
        BLOCK=triton.next_power_of_2(count),
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
