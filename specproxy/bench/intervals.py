"""The time between a sequence's steps, as the host sees it: what a drafting step costs in plain ones, and how evenly
steps come. The engine in this process, one sequence at a time; the first steps of an answer do not count, as the
prompt's own work ends among them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct

from specproxy.bench.arms import OFF, Arm, order
from specproxy.bench.client import Answer
from specproxy.bench.field import Grid
from specproxy.bench.records import Record, at_temperature
from specproxy.bench.session import Plan, surroundings
from specproxy.bench.stats import Ratio, paired_ratio
from specproxy.vocabulary import Delta

if TYPE_CHECKING:
    from specproxy.bench.alone import AloneEngine

SKIPPED = 2
"""Intervals at the beginning of an answer that do not count."""


class Pace(Struct, frozen=True):
    """One arm. Intervals in seconds; ``ratio``: its median interval over the plain one, paired by prompt;
    ``differing``: answers that are not those of plain decoding."""

    arm: str
    intervals: int
    tokens_per_step: float
    drafted_per_step: float
    median: float
    p10: float
    p90: float
    p99: float
    ratio: Ratio | None
    differing: int


class Paces(Struct, frozen=True):
    """All arms."""

    paces: list[Pace]
    facts: dict[str, Any]

    def to_json(self) -> str:
        """One line."""
        return msgspec.json.encode(self).decode()


@dataclass
class Heard:
    """One answer and the seconds between its steps."""

    answer: Answer
    intervals: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of its intervals; NaN where there are none."""
        return float(np.median(self.intervals)) if self.intervals else math.nan


def measurements(plan: Plan, arms: Sequence[Arm]) -> int:
    """How often ``done`` will be called."""
    return plan.repeats * len(plan.records) * len(arms)


def run_intervals(plan: Plan, engine: AloneEngine, arms: Sequence[Arm], done: Callable[[str], None]) -> Paces:
    """Every prompt as every arm, one right after the other; ``done`` hears of each. ``arms``: plain decoding first."""
    facts = surroundings()
    heard = asyncio.run(_measure(plan, engine, arms, done))
    facts |= {"engine": {"numerics": engine.numerics, "drafters": engine.drafters}}
    return Paces([pace_of(arm.name, heard[arm.name], heard[OFF]) for arm in arms], facts)


async def _measure(
    plan: Plan, engine: AloneEngine, arms: Sequence[Arm], done: Callable[[str], None]
) -> dict[str, list[Heard]]:
    heard: dict[str, list[Heard]] = {arm.name: [] for arm in arms}
    for arm in arms:
        await _listen(plan, engine, plan.records[0], arm, -1)
    for repeat in range(plan.repeats):
        for turn, record in enumerate(plan.records):
            for arm in order(arms, turn):
                heard[arm.name].append(await _listen(plan, engine, record, arm, repeat))
                done(f"{record.category}, {arm.name}")
    return heard


async def _listen(plan: Plan, engine: AloneEngine, record: Record, arm: Arm, repeat: int) -> Heard:
    decision = arm.decision([info.name for info in engine.drafters])
    asked = at_temperature(record, 0.0) if plan.greedy else record
    submission = engine.submission(asked, decision, f"{arm.name}#{repeat}", plan.max_tokens)
    moments: list[float] = []

    def hear(delta: Delta) -> None:
        if delta.tokens:
            moments.append(time.perf_counter())

    (answer,) = await engine.answer([submission], 1, hear)
    return Heard(answer, np.diff(moments)[SKIPPED:].tolist())


def pace_of(name: str, heard: Sequence[Heard], plain: Sequence[Heard]) -> Pace:
    """What an arm's answers come to, beside those of plain decoding to the same prompts. NaN where no answer was long
    enough to have an interval."""
    every = np.asarray([seconds for one in heard for seconds in one.intervals] or [math.nan], np.float64)
    p10, median, p90, p99 = (float(x) for x in np.percentile(every, (10, 50, 90, 99)))
    steps = sum(one.answer.steps for one in heard)
    pairs = [(one, other) for one, other in zip(heard, plain, strict=True) if one.intervals and other.intervals]
    logs = [math.log(one.median / other.median) for one, other in pairs]
    return Pace(
        arm=name,
        intervals=sum(len(one.intervals) for one in heard),
        tokens_per_step=sum(one.answer.tokens for one in heard) / steps if steps else math.nan,
        drafted_per_step=sum(one.answer.drafted for one in heard) / steps if steps else math.nan,
        median=median,
        p10=p10,
        p90=p90,
        p99=p99,
        ratio=paired_ratio(logs) if logs and name != OFF else None,
        differing=sum(not one.answer.same_as(other.answer) for one, other in zip(heard, plain, strict=True)),
    )


def intervals_table(paces: Paces) -> Grid:
    """A row an arm."""
    head = ["arm", "intervals", "tokens a step", "drafted a step", "ms [p10-p90]", "p99 ms", "p99 to median"]
    head += ["to plain [95 %]", "differing"]
    rows = []
    for pace in paces.paces:
        median, low, high, last = (1e3 * x for x in (pace.median, pace.p10, pace.p90, pace.p99))
        ratio = "-" if pace.ratio is None else f"{pace.ratio.mean:.3f} [{pace.ratio.low:.3f}, {pace.ratio.high:.3f}]"
        rows.append(
            [
                pace.arm,
                str(pace.intervals),
                f"{pace.tokens_per_step:.2f}",
                f"{pace.drafted_per_step:.2f}",
                f"{median:.3f} [{low:.3f}-{high:.3f}]",
                f"{last:.3f}",
                f"{last / median:.3f}",
                ratio,
                str(pace.differing),
            ]
        )
    return Grid("time between a sequence's steps, one sequence at a time", head, rows)
