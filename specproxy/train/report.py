"""How good a head is: acceptance on the target's own greedy answers, and what that is worth on this machine.

The speed-up is a model, not a measurement: a round that drafts K tokens costs one step of the target and K of the head
and yields tau tokens, so it is tau / (1 + K c), c being the head's step over the target's. It takes verifying K + 1
tokens for as cheap as one, which holds where a step is bound by memory; ``specproxy bench`` measures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from specproxy.train.packing import Document, batches
from specproxy.train.recipe import Recipe, Tally, mixed_precision
from specproxy.train.target import FrozenTarget

CONTEXT = 128
"""Tokens before those whose step is timed."""


@dataclass(frozen=True)
class Steps:
    """Measured seconds of one decoding step of the target and one guess of the head, at batch size 1."""

    target_s: float
    head_s: float

    @property
    def cost(self) -> float:
        """c: a guess over a step."""
        return self.head_s / self.target_s

    def speedup(self, tally: Tally, guesses: int) -> float:
        """Expected, when every round drafts ``guesses``."""
        return tally.expected_tokens(guesses) / (1 + guesses * self.cost)

    def best(self, tally: Tally) -> tuple[int, float]:
        """The number of guesses with the highest expected speed-up; 0 where none helps."""
        options = [(k, self.speedup(tally, k)) for k in range(len(tally.right) + 1)]
        return max(options, key=lambda option: option[1])


@dataclass(frozen=True)
class Evaluation:
    """``tallies`` by source; the machine's ``steps``."""

    tallies: dict[str, Tally]
    steps: Steps

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "target_step_ms": round(self.steps.target_s * 1e3, 3),
            "head_step_ms": round(self.steps.head_s * 1e3, 3),
            "sources": {name: self._row(tally) for name, tally in self.tallies.items()},
        }

    def _row(self, tally: Tally) -> dict[str, Any]:
        guesses, speedup = self.steps.best(tally)
        return {
            "positions": int(tally.starts),
            "conditional": [round(rate, 4) for rate in tally.conditional],
            "chain": [round(rate, 4) for rate in tally.chain],
            "tokens_per_round": round(tally.expected_tokens(len(tally.right)), 3),
            "best_k": guesses,
            "speedup": round(speedup, 3),
        }


def evaluate(
    recipe: Recipe,
    target: FrozenTarget,
    documents: Sequence[Document],
    *,
    length: int,
    rows: int,
    done: Callable[[int, int], None] = lambda _done, _total: None,
) -> Evaluation:
    """Acceptance by source on ``documents``, which hold the target's greedy answers; ``all`` is their sum."""
    recipe.module.eval()
    sources = sorted({d.source for d in documents})
    tallies: dict[str, Tally] = {}
    for number, source in enumerate(sources):
        members = [d for d in documents if d.source == source]
        for batch in batches(members, length=length, rows=rows, seed=0, shuffle=False):
            with mixed_precision(target.device):
                found = Tally.of(recipe.guess(batch.to(target.device)))
            if source in tallies:
                tallies[source].add(found)
            else:
                tallies[source] = found
        done(number + 1, len(sources))
    if len(tallies) > 1:
        total = Tally(torch.zeros(recipe.steps).double(), torch.zeros(recipe.steps).double())
        for tally in tallies.values():
            total.add(tally)
        tallies["all"] = total
    return Evaluation(tallies, Steps(target_step_s(target), recipe.step_s(repeater(target.device))))


@torch.no_grad()
def target_step_s(target: FrozenTarget) -> float:
    """Seconds of one greedy step of one sequence, behind ``CONTEXT`` tokens."""
    from transformers import DynamicCache

    cache = DynamicCache(config=target.model.config)
    target.model(input_ids=torch.zeros(1, CONTEXT, dtype=torch.int64, device=target.device), past_key_values=cache)
    token = torch.zeros(1, 1, dtype=torch.int64, device=target.device)

    def step() -> None:
        target.model(input_ids=token, past_key_values=cache).logits.argmax(-1)

    return repeater(target.device)(step)


def repeater(device: str, times: int = 20) -> Callable[[Callable[[], object]], float]:
    """A stopwatch: the median seconds of a call, after a few that warm up."""

    def measure(call: Callable[[], object]) -> float:
        taken = []
        for _ in range(times + 3):
            began = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken[3:])

    return measure


def table(evaluation: Evaluation) -> Table:
    """For people: conditional acceptance by position, the whole chain, and the expected speed-up."""
    guesses = max(len(tally.right) for tally in evaluation.tallies.values())
    made = Table(title="acceptance on held-out prompts: each guess, where all before it were right")
    made.add_column("source")
    for position in range(1, guesses + 1):
        made.add_column(str(position), justify="right")
    for heading in ("all right", "tokens/round", "best K", "expected speed-up"):
        made.add_column(heading, justify="right")
    for name, tally in evaluation.tallies.items():
        best, speedup = evaluation.steps.best(tally)
        rates = [f"{rate:.3f}" for rate in tally.conditional]
        made.add_row(
            name,
            *rates,
            f"{tally.chain[-1]:.3f}",
            f"{tally.expected_tokens(guesses):.2f}",
            str(best),
            f"{speedup:.2f}x",
        )
    return made
