"""Which choice is fastest, and is it really faster: successive halving, then a test on prompts that it did not see.

Halving: every choice is measured on the same prompts, the slower half leaves, and what is left is measured as long
again (Jamieson and Talwalkar, arXiv 1502.07943); whatever is proven slower than the best leaves at once. The winner of
many looks faster than it is, so its gain is estimated anew, on other prompts, by the gate's always-valid sequence:
it may stop when it suits, and the interval still holds. That sequence has no bounds before some thirteen pairs at 5 %,
twenty-five at the levels of a race of thirty: what is measured less often leaves by halving alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from msgspec import Struct, field

from specproxy.gate.rules import ALPHA
from specproxy.gate.statistics import Mean
from specproxy.tune.choices import Choice

Proof = Literal["proven", "missed", "open"]


class Tally(Struct):
    """What one arm did: generated tokens and the seconds they took, target steps, drafted and accepted tokens."""

    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    def add(self, other: Tally) -> None:
        """Take in another tally."""
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.steps += other.steps
        self.drafted += other.drafted
        self.accepted += other.accepted

    @property
    def tokens_per_s(self) -> float:
        """Speed; 0 where nothing was answered."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def acceptance(self) -> float | None:
        """Share of drafted tokens that stayed."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens of a target step, the bonus token included."""
        return self.tokens / self.steps if self.steps else None


class Pair(Struct, frozen=True):
    """Both arms on the same prompts, one right after the other. ``identical``: of ``answers`` that both gave;
    ``error``: why there is nothing to compare."""

    candidate: Tally
    control: Tally
    answers: int = 1
    identical: int = 1
    error: str | None = None


Measure = Callable[[Choice, int], Awaitable[Pair]]
"""Measures a choice against what serves now, on the prompts of turn ``int``, which are the same for every choice."""


class Entrant(Struct):
    """A choice and all that was measured of it. ``out``: why it left the race, empty while it is in."""

    choice: Choice
    speed: Mean = field(default_factory=Mean)
    candidate: Tally = field(default_factory=Tally)
    control: Tally = field(default_factory=Tally)
    answers: int = 0
    identical: int = 0
    out: str = ""

    def take(self, pair: Pair, *, exact: bool) -> None:
        """Take in one pair. ``exact``: answers are promised to be identical, and one that is not ends it all."""
        if pair.error is not None:
            self.out = f"failed: {pair.error}"
            return
        if not pair.candidate.tokens_per_s or not pair.control.tokens_per_s:
            return
        self.speed.add(math.log(pair.candidate.tokens_per_s / pair.control.tokens_per_s))
        self.candidate.add(pair.candidate)
        self.control.add(pair.control)
        self.answers += pair.answers
        self.identical += pair.identical
        if exact and pair.identical < pair.answers:
            self.out = "answers differ from what serves now"


def least_pairs(number: int) -> int:
    """Pairs without which a race of so many choices cannot be decided."""
    total = number
    while number > 1:
        number = (number + 1) // 2
        total += number if number > 1 else 0
    return total


async def race(entrants: Sequence[Entrant], measure: Measure, pairs: int, rng: random.Random, *, exact: bool) -> None:
    """Measure until one entrant is left in, or none. ``pairs``: as many at most, ``least_pairs`` or more."""
    alpha = ALPHA / max(1, len(entrants))
    alive, turn = list(entrants), 0
    rungs = max(1, math.ceil(math.log2(max(1, len(entrants)))))
    for rung in range(rungs):
        share = pairs // (rungs - rung)
        for _ in range(max(1, share // max(1, len(alive)))):
            for entrant in rng.sample(alive, len(alive)):
                entrant.take(await measure(entrant.choice, turn), exact=exact)
                pairs -= 1
            turn += 1
            drop_slower(alive, alpha)
            alive = [entrant for entrant in alive if not entrant.out]
        alive.sort(key=lambda entrant: -entrant.speed.mean)
        kept = (len(alive) + 1) // 2
        for entrant in alive[kept:]:
            entrant.out = f"among the slower half of {len(alive)}"
        alive = alive[:kept]
        if len(alive) < 2:
            return


def drop_slower(alive: Sequence[Entrant], alpha: float) -> None:
    """Take out who is proven slower than the best, at an error probability of ``alpha`` for each bound."""
    measured = [entrant for entrant in alive if not entrant.out and entrant.speed.n]
    if not measured:
        return
    best = max(measured, key=lambda entrant: entrant.speed.mean)
    for entrant in measured:
        if entrant.speed.upper(alpha) < best.speed.lower(alpha):
            entrant.out = "proven slower than another"


async def confirm(entrant: Entrant, measure: Measure, turns: int, min_gain: float, *, exact: bool) -> Proof:
    """Measure a fresh entrant until it is proven faster than what serves now by ``min_gain`` or proven not to be, or
    until all turns are over."""
    proof: Proof = "open"
    for turn in range(turns):
        entrant.take(await measure(entrant.choice, turn), exact=exact)
        if entrant.out:
            return "missed"
        proof = prove(entrant.speed, min_gain)
        if proof != "open":
            break
    return proof


def prove(speed: Mean, min_gain: float) -> Proof:
    """Whether a mean log speed ratio is proven above ``log(1 + min_gain)``, or below."""
    bound = math.log1p(min_gain)
    if speed.lower(ALPHA) > bound:
        return "proven"
    return "missed" if speed.upper(ALPHA) < bound else "open"
