"""A made-up machine and made-up drafters of known quality, to play the controller against."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from specproxy.engine.controller import Candidate, Controller
from specproxy.engine.costs import CostTable
from specproxy.vocabulary import Decision

ROW = 0.01
"""What one more row adds to a step, in plain steps."""
MAX_K = 12
NOISE = 0.15


@dataclass
class FakeClock:
    """Seconds that pass only when told to."""

    now: float = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def machine(chain: float = 0.0) -> CostTable:
    """A plain step costs 1, a row more 0.01, a drafted token ``chain``."""
    steps = {rows: 1 + ROW * (rows - 1) for rows in (1, 2, 8, 16, 64)}
    chains = {(rows, k): chain * k * (1 + 0.02 * (rows - 1)) for rows in (1, 8) for k in (1, 8)}
    return CostTable(steps, {"draft_model": chains} if chain else {})


def clipped(rate: float) -> float:
    """A probability that leaves room for doubt."""
    return min(0.995, max(0.0, rate))


def decision(**changes: Any) -> Decision:
    """One that lets the controller decide everything, unless changed."""
    return Decision("route", "revision", drafters=("draft_model",), **{"auto": True, **changes})


@cache
def constant(rate: float, cost: float) -> tuple[float, float]:
    """(tokens per unit of time, tokens per step) of the best constant K, steps varying by NOISE around ``rate``."""
    rng = random.Random(1)
    rates = [clipped(rate + rng.gauss(0, NOISE)) for _ in range(300)]
    yields = [sum(sum(r**i for i in range(k + 1)) for r in rates) / len(rates) for k in range(MAX_K + 1)]
    return max((tokens / (1 + (ROW + cost) * k), tokens) for k, tokens in enumerate(yields))


@dataclass
class Game:
    """One sequence with one drafter, whose drafts are accepted at a rate that switches from segment to segment.

    ``used``: time spent, in plain steps. ``oracle``: time the best constant K of each segment would have taken.
    ``tokens``: produced, which is the time of plain decoding.
    """

    cost: float
    known: bool = False
    used: float = 0.0
    oracle: float = 0.0
    tokens: int = 0
    choices: list[tuple[str | None, int, bool]] = field(default_factory=list)

    def play(self, rates: Sequence[float], steps: int = 400, seed: int = 0) -> "Game":
        """A segment for each of ``rates``, of as many tokens as the best constant K makes in ``steps`` steps."""
        rng = random.Random(seed)
        controller = Controller(machine(self.cost), FakeClock())
        candidates = [Candidate("draft_model", MAX_K, known=self.known)]
        for rate in rates:
            best, per_step = constant(rate, self.cost)
            done = 0
            while done < steps * per_step:
                choice = controller.choose("g", decision(), candidates, 1)
                quality = clipped(rate + rng.gauss(0, NOISE))
                accepted = 0
                while accepted < choice.k and rng.random() < quality:
                    accepted += 1
                controller.observe("g", "draft_model", 0, choice.k, accepted)
                self.used += 1 + (ROW + self.cost) * choice.k
                self.choices.append((choice.drafter, choice.k, choice.probe))
                done += accepted + 1
            self.oracle += done / best
            self.tokens += done
        return self


@pytest.fixture
def clock() -> FakeClock:
    """Time stands still."""
    return FakeClock()


@pytest.fixture
def make() -> Callable[..., CostTable]:
    """Makes machines."""
    return machine


@pytest.fixture
def decide() -> Callable[..., Decision]:
    """Makes decisions."""
    return decision


@pytest.fixture
def game() -> type[Game]:
    """The simulation."""
    return Game
