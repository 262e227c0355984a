"""What audits cost those who are served: the same prompts with every answer audited and with none, over HTTP.

One server has the same routes twice, audited and not. A block of prompts is answered by both, one right after the
other, in alternating order; between two blocks all audits that wait are worked off, so that none runs in the time of
the other arm. Two loads:

- *half*: requests arrive at random, at half the rate that the server sustains one at a time. Audits find idle time, and
  the question is how long a user waits for the one that runs.
- *full*: a closed loop of several at a time. There is no idle time, audits take their budget once they have waited in
  vain for some, and the queue grows. The first quarter of a block does not count: audits began during it.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import Callable, Sequence

import aiohttp
import msgspec
import numpy as np
from msgspec import Struct

from specproxy.bench.arms import Arm, order
from specproxy.bench.client import Answer
from specproxy.bench.overhead import Interval, median_interval
from specproxy.bench.records import Record
from specproxy.bench.session import Answerers, Plan
from specproxy.bench.stats import Ratio, paired_ratio
from specproxy.errors import StartError

AUDITED = "audited"
PLAIN = "unaudited"
BUDGET = 0.05
"""Share of the device's time that audits may take while users wait: what policies say unless told otherwise."""
UTILISATION = 0.5
FULL_ROUNDS, SKIPPED_ROUNDS = 24, 6
"""Prompts of a block of the full load for each of those that run at a time, and how many of them do not count."""

LEAST_PASSES = 4
"""Blocks of each load: with fewer a change of the machine's speed meets one arm alone."""

_DRAIN_S = 120.0
_POLL_S = 0.05
_COUNT = re.compile(r'^specproxy_audits_total\{route="([^"]+)",verdict="([^"]+)"\} ([0-9.e+]+)$', re.MULTILINE)


class Cost(Struct, frozen=True):
    """One load. ``speed``: tokens/s of an answer, audited over not, paired by prompt; ``throughput``: of whole blocks.
    Times in ms: ``ttft_added`` median over prompts, ``ttft_p95`` of single answers, audited and not. ``per_s``:
    arrivals, 0 in a closed loop. ``in_time``: audits that were over when their block was, of ``answers``, which are
    one arm's."""

    load: str
    at_once: int
    per_s: float
    answers: int
    tokens_per_s: float
    speed: Ratio
    throughput: Ratio
    ttft_added: Interval
    ttft_p95: tuple[float, float]
    in_time: int
    differing: int


class Heard(Struct):
    """A block as one arm answered it: its records, what they got, its wall time, and audits that it got done."""

    records: list[Record]
    answers: list[Answer]
    seconds: float
    in_time: int = 0


def arms_of(base: Arm) -> list[Arm]:
    """``base`` without audits and with them."""
    named = [msgspec.structs.replace(base, name=f"{base.name}-{kind}") for kind in (PLAIN, AUDITED)]
    return [named[0], msgspec.structs.replace(named[1], budget=BUDGET)]


def passes_of(plan: Plan) -> int:
    """Blocks of each load."""
    return max(LEAST_PASSES, plan.repeats)


def measurements(plan: Plan) -> int:
    """How often ``done`` will be called."""
    return 1 + 2 * 2 * passes_of(plan)


async def measure_cost(plan: Plan, answerers: Answerers, done: Callable[[str], None]) -> list[Cost]:
    """Both loads; ``plan.arms`` are those of ``arms_of``, and ``plan.concurrency`` run at a time in the closed
    loop."""
    return await _Costs(plan, answerers, done).run()


class _Costs:
    def __init__(self, plan: Plan, answerers: Answerers, done: Callable[[str], None]) -> None:
        self._plan = plan
        self._answerers = answerers
        self._arms = plan.arms
        self._done = done
        self._asked = 0
        self._sent = 0

    async def run(self) -> list[Cost]:
        rate = await self._rate()
        turns = range(passes_of(self._plan))
        half = [await self._pair(turn, rate) for turn in turns]
        full = [await self._pair(turn, 0.0) for turn in turns]
        return [
            cost_of("half", 1, rate, half, 0),
            cost_of("full", self._plan.concurrency, 0.0, full, self._plan.concurrency * SKIPPED_ROUNDS),
        ]

    async def _rate(self) -> float:
        """Arrivals a second: a share of what one at a time makes, both arms having warmed up on the same prompts."""
        for arm in self._arms:
            for record in self._plan.records:
                await self._answer(record, arm)
        await self._drain()
        answers = [await self._answer(record, self._arms[0]) for record in self._plan.records]
        self._done("one at a time")
        return UTILISATION * len(answers) / sum(answer.total_s for answer in answers)

    async def _pair(self, turn: int, rate: float) -> dict[str, Heard]:
        """Both arms' answers to the block of ``turn``; ``rate`` 0: in a closed loop."""
        records = list(self._plan.records)
        random.Random(turn).shuffle(records)
        if not rate:
            records = [records[i % len(records)] for i in range(self._plan.concurrency * FULL_ROUNDS)]
        found = {}
        for arm in order(self._arms, turn):
            before, sent = await self._over(), self._sent
            started = time.perf_counter()
            answers = await (self._open(records, arm, rate, turn) if rate else self._closed(records, arm))
            heard = Heard(records, answers, time.perf_counter() - started)
            heard.in_time = await self._over() - before if self._sent > sent else 0
            found[arm.name.rpartition("-")[2]] = heard
            await self._drain()
            self._done(f"{'half' if rate else 'full'} load, {arm.name}")
        return found

    async def _open(self, records: Sequence[Record], arm: Arm, rate: float, turn: int) -> list[Answer]:
        """Requests arrive at the same random moments for both arms."""
        rng, tasks = random.Random(f"arrivals {turn}"), []
        due = time.perf_counter()
        for record in records:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self._answer(record, arm)))
            due += rng.expovariate(rate)
        return list(await asyncio.gather(*tasks))

    async def _closed(self, records: Sequence[Record], arm: Arm) -> list[Answer]:
        free = asyncio.Semaphore(self._plan.concurrency)

        async def answer(record: Record) -> Answer:
            async with free:
                return await self._answer(record, arm)

        return list(await asyncio.gather(*map(answer, records)))

    async def _answer(self, record: Record, arm: Arm) -> Answer:
        self._asked += 1
        answer = await self._answerers.answer(self._plan, record, arm, self._asked)
        if answer.error is not None:
            raise StartError(f"{record.id}, {arm.name}: no answer: {answer.error}")
        self._sent += arm.budget is not None and answer.tokens > 0
        return answer

    async def _drain(self) -> None:
        """Wait until every audit is over. Raises StartError where they do not end."""
        deadline = time.monotonic() + _DRAIN_S
        while (over := await self._over()) < self._sent:
            if time.monotonic() > deadline:
                raise StartError(f"{self._sent - over} of {self._sent} audits did not end within {_DRAIN_S:.0f} s")
            await asyncio.sleep(_POLL_S)

    async def _over(self) -> int:
        """Audits that ended, whatever came of them."""
        return sum(verdict_counts(await read_metrics(self._answerers)).values())


async def read_metrics(answerers: Answerers) -> str:
    """The text of the measured server's /metrics."""
    root = str(answerers.facts["server"]["bitwise"]["url"]).removesuffix("/v1")
    async with aiohttp.ClientSession() as session, session.get(f"{root}/metrics") as response:
        return await response.text()


def verdict_counts(metrics: str) -> dict[str, int]:
    """Audits by verdict, over all routes."""
    counts: dict[str, int] = {}
    for _, verdict, count in _COUNT.findall(metrics):
        counts[verdict] = counts.get(verdict, 0) + int(float(count))
    return counts


def cost_of(load: str, at_once: int, per_s: float, blocks: Sequence[dict[str, Heard]], skipped: int) -> Cost:
    """What the blocks of one load come to; the first ``skipped`` answers of each do not count for single answers."""
    pairs = [
        (record, plain, audited)
        for block in blocks
        for record, plain, audited in zip(
            block[PLAIN].records[skipped:],
            block[PLAIN].answers[skipped:],
            block[AUDITED].answers[skipped:],
            strict=True,
        )
    ]
    speeds: dict[str, list[float]] = {}
    waits: dict[str, list[float]] = {}
    for record, plain, audited in pairs:
        speeds.setdefault(record.id, []).append(math.log(_speed(audited) / _speed(plain)))
        waits.setdefault(record.id, []).append(1e3 * (audited.ttft_s - plain.ttft_s))
    return Cost(
        load=load,
        at_once=at_once,
        per_s=per_s,
        answers=sum(len(block[AUDITED].answers) for block in blocks),
        tokens_per_s=float(np.exp(np.mean([math.log(_speed(plain)) for _, plain, _ in pairs]))),
        speed=paired_ratio([float(np.mean(logs)) for logs in speeds.values()]),
        throughput=paired_ratio([math.log(_rate(block[AUDITED]) / _rate(block[PLAIN])) for block in blocks]),
        ttft_added=median_interval([float(np.mean(added)) for added in waits.values()]),
        ttft_p95=(_p95([audited for _, _, audited in pairs]), _p95([plain for _, plain, _ in pairs])),
        in_time=sum(block[AUDITED].in_time for block in blocks),
        differing=sum(not audited.same_as(plain) for _, plain, audited in pairs),
    )


def _speed(answer: Answer) -> float:
    return answer.tokens / answer.total_s


def _rate(heard: Heard) -> float:
    return sum(answer.tokens for answer in heard.answers) / heard.seconds


def _p95(answers: Sequence[Answer]) -> float:
    return float(np.percentile([1e3 * answer.ttft_s for answer in answers], 95))
