"""Runs steps on the target: pads them to a proven width, returns logits.

Shapes: T rows, N sampled rows, V vocabulary.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specproxy.engine.step import Step
from specproxy.engine.threads import Threads
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from specproxy.models.base import StepModel, query_group
from specproxy.vocabulary import Exactness

if TYPE_CHECKING:
    from specproxy.engine.graphs import StepGraphs
    from specproxy.engine.ranks.leader import LedBuffers


@dataclass(frozen=True)
class Rules:
    """How steps are shaped so that a row's bits do not depend on the others.

    ``widths``: row counts a decode step may have, ascending; empty means any up to ``max_rows``. ``prefill_rows``: rows
    of a prefill chunk, aligned to absolute positions. ``one_provenance``: prefill and decode were proven to write the
    same KV, so pages of generated tokens may serve later prompts. ``trees``: a tree's rows were proven to equal those
    of its paths. ``trim``: prefill chunks may leave padding rows out
    down to a multiple of this many (0: never).
    """

    exactness: Exactness
    widths: tuple[int, ...]
    max_rows: int
    prefill_rows: int
    one_provenance: bool = False
    trees: bool = False
    trim: int = 0
    detail: str = ""

    @property
    def exact(self) -> bool:
        """Whether bitwise equality is promised."""
        return self.exactness != "numeric"

    def width(self, rows: int) -> int:
        """Rows to run for ``rows`` real ones."""
        if not self.widths or rows > self.widths[-1]:
            return rows
        return self.widths[bisect.bisect_left(self.widths, rows)]


GRAPHED_ROWS = 64
"""Rows up to which decode steps are captured on a GPU. Prompt chunks are captured, too, where one row is sampled."""

NUMERIC = Rules("numeric", (), 64, 128, trim=16)


class Runner:
    """The target with its KV buffers and the rules in force."""

    def __init__(
        self, model: StepModel, kv: KVBuffers, rules: Rules, threads: Threads, graphs: StepGraphs | None = None
    ) -> None:
        """``graphs``: another runner's over the same model and buffers. Where other ranks share the model, ``self.kv``
        are buffers that they have too."""
        self.model = model
        self._led = _led(model, kv)
        self.kv = self._led or kv
        self.rules = rules
        self.threads = threads
        self._group = query_group(model)
        self._graphs = _graphs(model, self.kv) if graphs is None else graphs

    def under(self, rules: Rules) -> Runner:
        """The same target under other rules."""
        return Runner(self.model, self.kv, rules, self.threads, self._graphs)

    def run(self, step: Step, hidden: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """Execute ``step``; logits [N, V] of its sampled rows in the model's dtype, and tapped hidden states.

        The head is one more product: its rows are padded to a proven width like all others.
        """
        rows, sampled, device = len(step.ids), len(step.sample), self.model.spec.device
        width = self.rules.width(rows) if step.kind == "decode" else rows
        self.threads.enter(width)
        if self._led is not None:
            self._led.run(step, self.rules, hidden)
        head = self.rules.width(max(1, sampled))
        chunk = step.kind == "prefill"
        if self._graphs is not None and (sampled == 1 if chunk else width <= GRAPHED_ROWS):
            logits, taps = self._graphs.run(step, width, hidden, head if chunk else None)
            if chunk or step.sample == list(range(sampled)):
                return logits[:sampled], taps
            return logits[torch.tensor(step.sample, dtype=torch.long, device=device)], taps
        pad = [0] * (width - rows)
        slots = torch.tensor(step.slots + [self.kv.trash_slot] * len(pad), dtype=torch.long, device=device)
        plan = plan_attention(step.spans, slots, self.kv, exact=self.rules.exact, group=self._group)
        every = sampled == width
        wanted = step.sample + [0] * (head - sampled)
        logits, taps = self.model.forward(
            torch.tensor(step.ids + pad, device=device),
            torch.tensor(step.positions + pad, device=device),
            plan,
            self.kv,
            None if every else torch.tensor(wanted, dtype=torch.long, device=device),
            hidden,
        )
        return logits[:sampled], taps


def _graphs(model: StepModel, kv: KVBuffers) -> StepGraphs | None:
    """Captured steps, where the target's path is made for it."""
    if not model.spec.captured:
        return None
    from specproxy.engine.graphs import StepGraphs

    return StepGraphs(model, kv)


def _led(model: StepModel, kv: KVBuffers) -> LedBuffers | None:
    """``kv`` with their parts on the other ranks, where this is the one that leads them."""
    if model.group is None:
        return None
    from specproxy.engine.ranks.leader import Leader, LedBuffers

    if isinstance(kv, LedBuffers):
        return kv
    return model.group.lead(kv) if isinstance(model.group, Leader) else None
