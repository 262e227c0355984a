"""What a recurrent head has computed of a sequence, in pages of its own.

An entry of (hidden state of position p, token of position p + 1) stands in the slot of position p + 1: it is a function
of the tokens up to there and no others, so that a page of entries can be shared like a page of the target's. What a
shared prefix lacks is the state of its last token, which nobody computes again: it is kept beside each full page.

A sequence whose states were not captured from the start (its route was off, or a shared page was filled without the
head) is drafted for from the first captured position on; entries before it are not seen.

Shapes: T entries, W width of the captured states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specproxy.drafters.base import DraftRow
from specproxy.kernels.paged import KVBuffers


@dataclass
class HeadRow:
    """``first``: the first slot with an entry; ``next``: slots before it have one. While a draft grows: ``state`` [H]
    behind the last committed token, ``states`` and ancestor ``words`` of the nodes that were run. ``tails`` [1, H]: the
    state with which a further module goes on, where a head has several."""

    first: int
    next: int
    state: Tensor | None = None
    states: list[Tensor] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    tails: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Entries:
    """What a row must compute: ``states`` [T, W] of positions from ``position`` on, with the tokens behind them."""

    position: int
    states: Tensor


class HeadPages:
    """Which pages hold a head's entries, and the states at their ends."""

    def __init__(self, kv: KVBuffers, num_pages: int, on_allocate: Callable[[Callable[[int], None]], None]) -> None:
        self.kv = kv
        self._ends: dict[int, Tensor] = {}
        self._num_pages = num_pages
        on_allocate(self._forget_page)

    def bytes(self) -> int:
        """Memory of KV and states."""
        return self.kv.bytes() + sum(end.numel() * end.element_size() for end in self._ends.values())

    def _forget_page(self, page: int) -> None:
        self._ends.pop(page, None)
        self.kv.zero_page(page)

    def take(self, row: DraftRow, leave: int = 0) -> Entries | None:
        """The entries that are possible now but the last ``leave``, of ``row.hidden``, which gives them up; ``None``
        where there are none."""
        hidden, state = row.hidden, row.state
        room = len(row.pages) * self.kv.page_size - 1
        start, end = hidden.start, min(hidden.end, len(row.tokens) - 1 - leave, room)
        if end <= start:
            return None
        lead: Tensor | None = None
        if not isinstance(state, HeadRow) or state.next - 1 != start:
            lead = self._shared(row, start)
            state = row.state = HeadRow(1 if lead is not None or start == 0 else start + 1, start + (lead is None))
        states = hidden.take(end)
        if lead is not None:
            states = torch.cat([lead[None], states])
            start -= 1
        self._keep_ends(row, start, states)
        row.seen = state.next = start + states.shape[0] + 1
        return Entries(start, states)

    def _shared(self, row: DraftRow, start: int) -> Tensor | None:
        """The state before ``start``, where all pages before it were filled with entries."""
        size = self.kv.page_size
        if start == 0 or start % size:
            return None
        pages = row.pages[: start // size]
        return self._ends[pages[-1]] if all(page in self._ends for page in pages) else None

    def _keep_ends(self, row: DraftRow, start: int, states: Tensor) -> None:
        """Remember the states of positions that end a page, if its entries are complete from the first page on."""
        size = self.kv.page_size
        for position in range(start + (-start - 1) % size, start + states.shape[0], size):
            page = position // size
            before = page == 0 or row.pages[page - 1] in self._ends
            if before and isinstance(row.state, HeadRow) and row.state.first == 1:
                self._ends[row.pages[page]] = states[position - start].clone()
