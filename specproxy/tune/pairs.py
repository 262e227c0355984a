"""Measuring a pair: both arms on the same prompts, one right after the other, the first by lot."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from specproxy.bench.client import Answer
from specproxy.bench.records import Record
from specproxy.tune.choices import Choice, describe
from specproxy.tune.race import Pair, Tally
from specproxy.vocabulary import Decision

if TYPE_CHECKING:
    from specproxy.bench.alone import AloneEngine

WARM_UP_TOKENS = 16


def make_blocks(records: Sequence[Record], at_once: int) -> list[list[Record]]:
    """What is sent at once: ``at_once`` prompts each; a rest too small is left out unless it is all there is."""
    found = [list(records[start : start + at_once]) for start in range(0, len(records), at_once)]
    return [block for block in found if len(block) == at_once] or found


class Pairs:
    """Measures choices for one route in one stage of its tuning, each in a cache and statistics of its own.

    ``now``: what the route decides today. ``done`` hears of each pair. A stage that has more turns than blocks of
    prompts goes through them again, in other caches: a drafter must not find its own answer.
    """

    def __init__(
        self,
        engine: AloneEngine,
        now: Decision,
        blocks: Sequence[Sequence[Record]],
        *,
        stage: str,
        max_tokens: int,
        rng: random.Random,
        done: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._now = now
        self._names = [info.name for info in engine.drafters]
        self._blocks = blocks
        self._stage = stage
        self._max_tokens = max_tokens
        self._rng = rng
        self._done = done

    async def warm_up(self, choice: Choice) -> None:
        """A short answer that does not count: first steps of a kind allocate, compile and capture."""
        decision = choice.decision(self._now, self._names)
        await self._answer(self._blocks[0], decision, "warm-up", min(WARM_UP_TOKENS, self._max_tokens))

    async def measure(self, choice: Choice, turn: int) -> Pair:
        """See Measure."""
        block = self._blocks[turn % len(self._blocks)]
        decision = choice.decision(self._now, self._names)
        name = describe(decision)
        salt = f"{self._stage}#{name}#{turn // len(self._blocks)}"
        arms = [("candidate", decision), ("control", self._now)]
        self._rng.shuffle(arms)
        answers = {arm: await self._answer(block, chosen, f"{salt}#{arm}", self._max_tokens) for arm, chosen in arms}
        self._done(name)
        return pair_of(answers["candidate"], answers["control"])

    async def _answer(
        self, block: Sequence[Record], decision: Decision, salt: str, max_tokens: int
    ) -> Sequence[Answer]:
        submissions = [self._engine.submission(record, decision, salt, max_tokens) for record in block]
        return await self._engine.answer(submissions, len(submissions))


def pair_of(candidate: Sequence[Answer], control: Sequence[Answer]) -> Pair:
    """Both arms' answers to the same prompts, in the same order, as a pair."""
    error = next((answer.error for answer in (*candidate, *control) if answer.error is not None), None)
    same = sum(mine.same_as(other) for mine, other in zip(candidate, control, strict=True))
    return Pair(_tally(candidate), _tally(control), len(candidate), same, error)


def _tally(answers: Sequence[Answer]) -> Tally:
    """A block's answers begin together, so that their time is the longest."""
    return Tally(
        tokens=sum(answer.tokens for answer in answers),
        seconds=max(answer.total_s for answer in answers),
        steps=sum(answer.steps for answer in answers),
        drafted=sum(answer.drafted for answer in answers),
        accepted=sum(answer.accepted for answer in answers),
    )
