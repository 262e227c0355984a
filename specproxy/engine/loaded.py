"""The loaded drafters, and what each of them holds of a sequence: its row, and states of the target that wait there."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from specproxy.drafters.base import DraftBatch, DraftContext, Drafter, DraftRow
from specproxy.drafters.hidden import MAX_WAITING
from specproxy.engine.sequence import Sequence
from specproxy.vocabulary import MAX_TREE_NODES

if TYPE_CHECKING:
    from specproxy.drafters.lanes import LaneDrafter

USUAL_BEHIND = 8
"""Tokens that a drafter lacks after a step of its own: part of what its chains were measured at."""


class LoadedDrafters:
    """Drafters come and go by name, sequences stay. ``drafters``: in the order in which they were loaded."""

    def __init__(self, max_rows: int) -> None:
        """``max_rows``: sequences that a drafter is asked for at once."""
        self.drafters: dict[str, Drafter] = {}
        self.max_rows = max_rows
        self._readers: set[str] = set()
        self._batches: dict[str, DraftBatch] = {}

    def add(self, drafter: Drafter) -> None:
        """A drafter was loaded."""
        self.drafters[drafter.name] = drafter
        if drafter.needs.hidden:
            self._readers.add(drafter.name)

    def forget(self, name: str) -> None:
        """A drafter was unloaded."""
        self.drafters.pop(name, None)
        self._readers.discard(name)
        self._batches.pop(name, None)

    @property
    def hosts(self) -> list[str]:
        """Those that draft on the host."""
        return [name for name, drafter in self.drafters.items() if drafter.needs.place == "host"]

    @property
    def in_lanes(self) -> list[str]:
        """Those that draft in lanes."""
        return [name for name, drafter in self.drafters.items() if drafter.needs.lanes]

    def for_lanes(self, name: str) -> LaneDrafter:
        """A drafter that drafts in lanes (``Needs.lanes``)."""
        return cast("LaneDrafter", self.drafters[name])

    def release(self, sequence: Sequence) -> None:
        """A sequence's KV is given up, or the sequence ended."""
        sequence.begun.clear()
        for name, row in sequence.drafts.items():
            row.state = None
            row.hidden.clear()
            if name in self.drafters:
                self.drafters[name].release(sequence.id)

    def hidden(self, sequences: Rows[Sequence]) -> tuple[int, ...]:
        """The target's states that drafters of these sequences read; none where their routes are off."""
        if not self._readers:
            return ()
        names = {name for s in sequences for name in s.decision.drafters}
        return tuple(sorted({state for name in names & self._readers for state in self.drafters[name].needs.hidden}))

    def reads(self, name: str) -> tuple[int, ...]:
        """The target's states that a drafter reads, in its order; none for "", plain decoding."""
        return self.drafters[name].needs.hidden if name else ()

    def feed(
        self,
        s: Sequence,
        position: int,
        states: Mapping[int, Tensor],
        rows: slice | list[int],
        names: Rows[str] | None = None,
    ) -> None:
        """``rows`` of a step's captured ``states`` [T, D] are those of committed tokens from ``position`` on; for the
        drafters ``names`` of the sequence's, all where not given."""
        for name in s.decision.drafters if names is None else names:
            if name not in self._readers:
                continue
            row = s.row(name)
            row.hidden.append(position, torch.cat([states[i][rows] for i in self.drafters[name].needs.hidden], 1))
            if len(row.hidden) >= MAX_WAITING:
                s.begun.add(name)
                self.drafters[name].prefill(DraftContext([row]))

    def begin(self, s: Sequence) -> None:
        """A part of the sequence's prompt is being computed: drafters that will sit in lanes take in what they can
        behind it, before the host waits for its end."""
        for name in s.decision.drafters:
            if name in self.drafters and self.drafters[name].needs.lanes:
                self.for_lanes(name).begin(self.row(s, name, 0))

    def row(self, s: Sequence, name: str, k: int) -> DraftRow:
        """The sequence's row for a drafter that may draft ``k`` nodes; the drafter has seen what is committed."""
        row = s.row(name)
        row.k = k
        if name not in s.begun:
            s.begun.add(name)
            self.drafters[name].prefill(DraftContext([row]))
        return row

    def behind(self, s: Sequence, name: str) -> int:
        """Tokens that a drafter must take in before it can draft, but for what each step brings."""
        row = self.row(s, name, 0)
        behind = len(s.tokens) - row.seen
        if name in self._readers:
            behind = min(behind, len(row.hidden) + 1)
        return max(0, behind - USUAL_BEHIND)

    def batch(self, name: str) -> DraftBatch:
        """Where a drafter writes what it drafts for ``max_rows`` sequences at most."""
        batch = self._batches.get(name)
        if batch is None:
            needs = self.drafters[name].needs
            nodes = MAX_TREE_NODES if needs.branches else min(MAX_TREE_NODES, needs.max_k)
            batch = self._batches[name] = DraftBatch.allocate(self.max_rows, nodes)
        return batch
