"""What the server and the socket add: the engine's loop alone against the same prompts over HTTP, plain decoding."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specproxy.bench.alone import AloneEngine
from specproxy.bench.arms import OFF, Arm
from specproxy.bench.client import Answer
from specproxy.bench.records import Record, at_temperature
from specproxy.bench.runner import Block, make_blocks
from specproxy.bench.session import Answerers, Plan, notes
from specproxy.bench.stats import RESAMPLES, Ratio, median, paired_ratio
from specproxy.vocabulary import Decision, Submission

ROUNDS = 4
"""Prompts of a block, for each of those that run at a time: enough that its beginning and its end, when fewer run,
count for little, and few enough that both ways meet the same machine."""

PLAIN = Decision(route="bench", revision="", reason="plain")


class Interval(Struct, frozen=True):
    """A median with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


class Overhead(Struct, frozen=True):
    """The comparison. Times in ms, paired by prompt; ``speed``: tokens/s over HTTP against alone, at one request.
    ``gain_alone`` and ``gain_http``: tokens/s with ``concurrency`` requests against one."""

    prompts: int
    ttft_alone_ms: float
    ttft_http_ms: float
    ttft_added_ms: Interval
    speed: Ratio
    alone_tokens_per_s: float
    http_tokens_per_s: float
    concurrency: int
    alone_many_tokens_per_s: float
    http_many_tokens_per_s: float
    gain_alone: float
    gain_http: float
    notes: list[str]
    facts: dict[str, Any]

    def to_json(self) -> str:
        """One line."""
        return msgspec.json.encode(self).decode()


class Timed(Struct, frozen=True):
    """One block, one way: its wall time in seconds and its answers."""

    seconds: float
    answers: list[Answer]

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(answer.tokens for answer in self.answers)


class Pair(Struct, frozen=True):
    """One block, both ways."""

    alone: Timed
    http: Timed


def pairs_to_run(plan: Plan) -> int:
    """How often ``done`` will be called."""
    return len(make_blocks(plan.records, 1, plan.repeats)) + len(make_mixed_blocks(plan))


async def measure_overhead(plan: Plan, answerers: Answerers, engine: AloneEngine, done: Callable[[], None]) -> Overhead:
    """Every prompt alone and over HTTP in alternating order, first one at a time, then ``plan.concurrency``."""
    both = _Both(plan, answerers, engine)
    for record in plan.records[:2]:
        await both.run(Block(-1, record.category, (record,), -1), 1, alone_first=True)
    single = await both.run_all(make_blocks(plan.records, 1, plan.repeats), 1, done)
    many = await both.run_all(make_mixed_blocks(plan), plan.concurrency, done)
    return _summary(plan, single, many, answerers.facts)


def make_mixed_blocks(plan: Plan) -> list[Block]:
    """Blocks of prompts across categories, ``ROUNDS`` for each that runs at a time; a last, smaller one would not be as
    concurrent, so it is left out where there are others."""
    n = plan.concurrency * ROUNDS
    groups = [tuple(plan.records[i : i + n]) for i in range(0, len(plan.records), n)]
    if len(groups) > 1 and len(groups[-1]) < n:
        groups.pop()
    return [Block(i, "all", group, repeat) for repeat in range(plan.repeats) for i, group in enumerate(groups)]


class _Both:
    """Runs one block alone and over HTTP."""

    def __init__(self, plan: Plan, answerers: Answerers, engine: AloneEngine) -> None:
        self._plan = plan
        self._answerers = answerers
        self._engine = engine
        self._runs = 0

    async def run_all(self, blocks: Sequence[Block], at_once: int, done: Callable[[], None]) -> list[Pair]:
        pairs = []
        for turn, block in enumerate(blocks):
            pairs.append(await self.run(block, at_once, alone_first=turn % 2 == 0))
            done()
        return pairs

    async def run(self, block: Block, at_once: int, *, alone_first: bool) -> Pair:
        self._runs += 1
        if alone_first:
            alone = await self._alone(block, at_once)
            return Pair(alone, await self._http(block, at_once))
        http = await self._http(block, at_once)
        return Pair(await self._alone(block, at_once), http)

    async def _alone(self, block: Block, at_once: int) -> Timed:
        submissions = [self._submission(record) for record in block.records]
        answers = await self._engine.answer(submissions, at_once)
        return Timed(max(answer.total_s for answer in answers), answers)

    async def _http(self, block: Block, at_once: int) -> Timed:
        arm, free = Arm(OFF, OFF), asyncio.Semaphore(at_once)

        async def answer(record: Record) -> Answer:
            async with free:
                return await self._answerers.answer(self._plan, record, arm, self._runs)

        started = time.perf_counter()
        answers = await asyncio.gather(*(answer(record) for record in block.records))
        seconds = time.perf_counter() - started
        return Timed(answers[0].total_s if len(answers) == 1 else seconds, answers)

    def _submission(self, record: Record) -> Submission:
        """Parsed before the clock runs."""
        asked = at_temperature(record, 0.0) if self._plan.greedy else record
        return self._engine.submission(asked, PLAIN, f"alone#{self._runs}", self._plan.max_tokens)


def _summary(plan: Plan, single: Sequence[Pair], many: Sequence[Pair], facts: dict[str, Any]) -> Overhead:
    added = [(p.http.answers[0].ttft_s - p.alone.answers[0].ttft_s) * 1000 for p in single]
    logs = [
        math.log(p.http.tokens / p.http.seconds) - math.log(p.alone.tokens / p.alone.seconds)
        for p in single
        if p.alone.tokens and p.http.tokens
    ]
    alone_1, http_1 = _speed([p.alone for p in single]), _speed([p.http for p in single])
    alone_n, http_n = _speed([p.alone for p in many]), _speed([p.http for p in many])
    method = (
        f"{len(plan.records)} prompts, {plan.repeats} repeat(s), at most {plan.max_tokens} tokens, alone and over HTTP "
        "in alternating order; differences paired by prompt, with 95 % bootstrap intervals; tok/s: all tokens over all "
        "time"
    )
    return Overhead(
        prompts=len(plan.records),
        ttft_alone_ms=median([p.alone.answers[0].ttft_s * 1000 for p in single]) or 0.0,
        ttft_http_ms=median([p.http.answers[0].ttft_s * 1000 for p in single]) or 0.0,
        ttft_added_ms=median_interval(added),
        speed=paired_ratio(logs),
        alone_tokens_per_s=alone_1,
        http_tokens_per_s=http_1,
        concurrency=plan.concurrency,
        alone_many_tokens_per_s=alone_n,
        http_many_tokens_per_s=http_n,
        gain_alone=alone_n / alone_1,
        gain_http=http_n / http_1,
        notes=[method, *notes(facts)],
        facts=facts,
    )


def _speed(timed: Sequence[Timed]) -> float:
    return sum(t.tokens for t in timed) / sum(t.seconds for t in timed)


def median_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """The median of ``values`` and the 95 % bootstrap interval of it."""
    x = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    medians = np.median(x[rng.integers(0, len(x), (RESAMPLES, len(x)))], axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return Interval(float(np.median(x)), float(low), float(high))


def print_overhead(console: Console, overhead: Overhead) -> None:
    """The comparison as a table."""
    added, speed = overhead.ttft_added_ms, overhead.speed
    table = Table(title="engine alone against over HTTP, plain decoding", title_justify="left")
    for name in ("", "engine alone", "over HTTP", "difference"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row(
        "TTFT, median",
        f"{overhead.ttft_alone_ms:.2f} ms",
        f"{overhead.ttft_http_ms:.2f} ms",
        f"{added.median:+.2f} ms ({added.low:+.2f} to {added.high:+.2f})",
    )
    table.add_row(
        "tok/s, one at a time",
        f"{overhead.alone_tokens_per_s:.1f}",
        f"{overhead.http_tokens_per_s:.1f}",
        f"{speed.mean - 1:+.1%} ({speed.low - 1:+.1%} to {speed.high - 1:+.1%})",
    )
    table.add_row(
        f"tok/s, {overhead.concurrency} at a time",
        f"{overhead.alone_many_tokens_per_s:.1f}",
        f"{overhead.http_many_tokens_per_s:.1f}",
        f"{overhead.http_many_tokens_per_s / overhead.alone_many_tokens_per_s - 1:+.1%}",
    )
    table.add_row("gain over one", f"{overhead.gain_alone:.2f}x", f"{overhead.gain_http:.2f}x", "")
    console.print(table)
    for note in overhead.notes:
        console.print(escape(note), highlight=False, soft_wrap=True)
