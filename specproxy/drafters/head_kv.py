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
        self._ended = bytearray(num_pages)
        self._ends: Tensor | None = None
        on_allocate(self._forget_page)

    def bytes(self) -> int:
        """Memory of KV and states."""
        return self.kv.bytes() + (0 if self._ends is None else self._ends.numel() * self._ends.element_size())

    def _forget_page(self, page: int) -> None:
        self._ended[page] = 0
        self.kv.zero_page(page)

    def ends(self, states: Tensor) -> Tensor:
        """The state [pages, W] of each page's last token, of the kind of ``states`` [..., W]."""
        if self._ends is None:
            self._ends = states.new_zeros(len(self._ended), states.shape[-1])
        return self._ends

    def take(self, row: DraftRow, leave: int = 0) -> Entries | None:
        """The entries that are possible now but the last ``leave``, of ``row.hidden``, which gives them up; ``None``
        where there are none. Whoever takes them computes them at once: states at page ends are kept."""
        entries = self.hand_over(row, leave)
        if entries is not None:
            self.keep_ends(row, entries)
        return entries

    def hand_over(self, row: DraftRow, leave: int = 0) -> Entries | None:
        """As ``take``, for somebody who computes them some time: nobody may share them before."""
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
        row.seen = state.next = start + states.shape[0] + 1
        return Entries(start, states)

    def _shared(self, row: DraftRow, start: int) -> Tensor | None:
        """The state before ``start``, where all pages before it were filled with entries."""
        size = self.kv.page_size
        if start == 0 or start % size:
            return None
        pages = row.pages[: start // size]
        known = self._ends is not None and all(self._ended[page] for page in pages)
        return self._ends[pages[-1]] if self._ends is not None and known else None

    def keep_ends(self, row: DraftRow, entries: Entries) -> None:
        """Remember the states of positions that end a page, if its entries are complete from the first page on."""
        start, states = entries.position, entries.states
        for page in self.mark_ended(row, start + 1, start + 1 + states.shape[0]):
            self.ends(states)[row.pages[page]] = states[(page + 1) * self.kv.page_size - 1 - start]

    def mark_ended(self, row: DraftRow, start: int, end: int) -> list[int]:
        """Entries in slots ``start`` to ``end`` (exclusive) are new: pages of the row that others may share from now
        on, as all entries up to the one behind the page are there. Their states are known, or are about to be."""
        size, marked = self.kv.page_size, []
        for page in range((start + size - 1) // size - 1, (end - 1) // size):
            before = page == 0 or self._ended[row.pages[page - 1]]
            if page >= 0 and before and isinstance(row.state, HeadRow) and row.state.first == 1:
                self._ended[row.pages[page]] = 1
                marked.append(page)
        return marked


def head_row(row: DraftRow) -> HeadRow:
    """What a row's head has computed of it. Raises TypeError where the row is another drafter's."""
    if not isinstance(row.state, HeadRow):
        raise TypeError(f"row {row.seq_id} has another drafter's state")
    return row.state
