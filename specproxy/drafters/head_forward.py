"""Forwards of a recurrent head: entries and drafted nodes of several rows at once, in the head's own pages.

Shapes: T entries, H width of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specproxy.drafters.base import ROOT, DraftRow
from specproxy.drafters.growth import Ask
from specproxy.drafters.head_kv import HeadPages, HeadRow, head_row
from specproxy.heads.base import HeadStep, RecurrentHead
from specproxy.kernels.attention import Span
from specproxy.kernels.plan import plan_attention

CATCH_UP_ROWS = 256
"""Entries computed at once when many wait (a prompt, a resume)."""


@dataclass
class HeadBatch:
    """Entries of several rows on their way into one forward, a span for each row."""

    page_size: int
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def add_entries(self, row: DraftRow, position: int, states: Tensor) -> None:
        """Committed entries of a row from ``position`` on, of fused ``states`` [T, H]."""
        end = position + states.shape[0]
        self.spans.append(Span(len(self.ids), end - position, position + 1, row.pages, first=head_row(row).first))
        self.ids += row.tokens[position + 1 : end + 1]
        self.positions += range(position, end)
        self.slots += self._slots(row, position + 1, end + 1)
        self.states.append(states)

    def add_nodes(self, row: DraftRow, nodes: Sequence[Ask]) -> None:
        """One level of a row's tree behind its committed entries."""
        progress, known, before = head_row(row), len(row.tokens), len(head_row(row).words)
        for i, node in enumerate(nodes, start=before):
            above = 0 if node.parent == ROOT else progress.words[node.parent]
            progress.words.append(above | 1 << i)
            state = progress.state if node.parent == ROOT else progress.states[node.parent]
            if state is None:
                raise RuntimeError(f"row {row.seq_id} is extended before it has caught up")
            self.states.append(state[None])
        words = progress.words[before:]
        self.spans.append(Span(len(self.ids), len(nodes), known, row.pages, words, before, progress.first))
        self.ids += [node.token for node in nodes]
        self.positions += [known - 2 + node.depth for node in nodes]
        self.slots += self._slots(row, known + before, known + before + len(nodes))

    def _slots(self, row: DraftRow, start: int, end: int) -> list[int]:
        size, pages = self.page_size, row.pages
        return [pages[p // size] * size + p % size for p in range(start, end)]


class HeadForward:
    """A head over its pages. ``modules``: parts of the head, one for each level of a draft; the last one drafts all
    further ones."""

    def __init__(self, head: RecurrentHead, pages: HeadPages) -> None:
        self.modules = head.spec.steps or 1
        self._head = head
        self._kv = pages.kv

    def batch(self) -> HeadBatch:
        """An empty one."""
        return HeadBatch(self._kv.page_size)

    def run(self, batch: HeadBatch, module: int = 0) -> HeadStep:
        """One module over the batch."""
        states = batch.states[0] if len(batch.states) == 1 else torch.cat(batch.states)
        device, kv = states.device, self._kv
        slots = _sent(batch.slots, device)
        plan = plan_attention(batch.spans, slots, kv, exact=False, group=self._head.spec.group)
        ids, positions = _sent(batch.ids, device), _sent(batch.positions, device)
        return self._head.step(ids, states, positions, plan, kv, module)

    def chain_modules(self, batch: HeadBatch, rows: Sequence[HeadRow], step: HeadStep) -> None:
        """Further modules over the same entries, those of ``rows``, behind the first one's ``step``: each takes the
        state that the one before it had a position earlier."""
        for module in range(1, self.modules):
            states = []
            for progress, span in zip(rows, batch.spans, strict=True):
                mine = step.recurrent[span.start : span.start + span.count]
                before = progress.tails.get(module)
                states.append(torch.zeros_like(mine[:1]) if before is None else before)
                states.append(mine[:-1])
                progress.tails[module] = mine[-1:].clone()
            batch.states = states
            step = self.run(batch, module)

    def compute(self, row: DraftRow, position: int, states: Tensor) -> None:
        """Entries of fused states [T, H], from ``position`` on, of which nobody needs the features."""
        for start in range(0, states.shape[0], CATCH_UP_ROWS):
            alone = self.batch()
            alone.add_entries(row, position + start, states[start : start + CATCH_UP_ROWS])
            self.chain_modules(alone, [head_row(row)], self.run(alone))


def _sent(numbers: list[int], device: torch.device) -> Tensor:
    """Numbers on their way to a device; the host does not wait for what that computes now."""
    return torch.tensor(numbers, pin_memory=device.type == "cuda").to(device, non_blocking=True)
