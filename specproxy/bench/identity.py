"""Speculation on against off, token for token and logit for logit, the engine in this process.

The reference answers every prompt plainly and alone. Everything else must say the same: drafting as each arm does, as
chains and trees, one sequence at a time and several, and plain decoding of several. Each is asked twice: for tokens
alone, as clients ask, and with the logprobs of every token and of its likeliest alternatives, which are compared bit by
bit. A logprob holds a sum over all logits of its row in float64, so a changed logit anywhere shows.

What bitwise equality costs is measured beside it: plain decoding under the proven rules against the numeric ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from specproxy.bench.arms import OFF, OFF_NUMERIC, Arm, parse_arm
from specproxy.bench.client import Answer
from specproxy.bench.field import Grid
from specproxy.bench.records import Record, at_temperature
from specproxy.bench.runner import make_blocks, measure
from specproxy.bench.session import Plan, surroundings
from specproxy.bench.stats import Ratio, paired_ratio
from specproxy.bench.summary import describe_difference, log_ratios
from specproxy.bench.sweep import BRANCHING
from specproxy.errors import StartError
from specproxy.vocabulary import Delta, DrafterInfo, Numerics, TokenLogprob

if TYPE_CHECKING:
    from specproxy.bench.alone import AloneEngine
    from specproxy.engine.assemble import Assembled
    from specproxy.engine.runner import Runner

TEMPERATURES = (0.0, 0.8)
AT_ONCE = (1, 8)
TOP = 5
"""Alternatives whose logprobs are compared beside the token's own."""
TREE_WIDTH = 3
COST_PROMPTS = 16
"""Prompts on which the cost is measured, twice each, at most."""
COST_REPEATS = 2


class Said(Struct):
    """One answer, and the logprobs of its tokens where they were asked for."""

    answer: Answer
    logprobs: list[TokenLogprob] = []

    @property
    def numbers(self) -> int:
        """Logprobs held."""
        return sum(1 + len(one.top) for one in self.logprobs)


class Cell(Struct):
    """One arm at one temperature, ``at_once`` sequences at a time, against plain decoding alone. ``tokens`` and
    ``logprobs`` compared; ``differing``: answers that are not the same, ``first_difference`` names one."""

    temperature: float
    at_once: int
    arm: str
    answers: int = 0
    tokens: int = 0
    logprobs: int = 0
    drafted: int = 0
    accepted: int = 0
    differing: int = 0
    first_difference: str | None = None

    def compare(self, record: Record, said: Said, plain: Said) -> None:
        """Count one answer."""
        self.answers += 1
        self.tokens += said.answer.tokens
        self.logprobs += said.numbers
        self.drafted += said.answer.drafted
        self.accepted += said.answer.accepted
        found = difference(said, plain)
        if found is not None:
            self.differing += 1
            self.first_difference = self.first_difference or f"{record.id}: {found}"


class Identity(Struct, frozen=True):
    """``cost``: speed of plain decoding under the proven rules over that under numeric ones, paired by prompt."""

    prompts: int
    cells: list[Cell]
    cost: Ratio | None
    facts: dict[str, Any]

    @property
    def differing(self) -> int:
        """Answers that are not the same, all in all."""
        return sum(cell.differing for cell in self.cells)

    def to_json(self) -> str:
        """One line."""
        return msgspec.json.encode(self).decode()


def difference(said: Said, plain: Said) -> str | None:
    """Where an answer parts from its plain twin, in words; ``None`` where nowhere. Logprobs are compared where
    ``said`` has them."""
    if said.answer.error is not None or plain.answer.error is not None:
        return f"no answer: {said.answer.error or plain.answer.error}"
    if not said.answer.same_as(plain.answer):
        return describe_difference(said.answer, plain.answer)
    if not said.logprobs:
        return None
    if len(said.logprobs) != len(plain.logprobs):
        return f"{len(said.logprobs)} tokens with logprobs, plain has {len(plain.logprobs)}"
    for at, (mine, other) in enumerate(zip(said.logprobs, plain.logprobs, strict=True)):
        if mine != other:
            return f"token {at} has logprob {mine.logprob!r}, plain says {other.logprob!r} (or one beside it differs)"
    return None


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """``count`` prompts, as many of each category as there are. Raises StartError where there are fewer prompts."""
    if len(records) < count:
        raise StartError(f"--identity: {count} prompts wanted, there are {len(records)}; name a longer file")
    by_category: dict[str, list[Record]] = {}
    for record in records:
        by_category.setdefault(record.category, []).append(record)
    ranked = [(place, record) for members in by_category.values() for place, record in enumerate(members)]
    ranked.sort(key=lambda pair: pair[0])
    return [record for _, record in ranked[:count]]


def choose(texts: Sequence[str], drafters: Sequence[DrafterInfo], numerics: Numerics) -> list[Arm]:
    """The arms that ``texts`` name; else every drafter as a chain, those that branch as a tree too where the engine
    claims trees, and the controller's choice. Raises StartError for an arm or a machine that promises nothing."""
    if numerics.exactness == "numeric":
        raise StartError(f"--identity: this machine promises no equality: {numerics.detail or 'numeric is configured'}")
    known = {info.name for info in drafters}
    names = list(texts)
    if not names:
        names = [info.name for info in drafters]
        if numerics.trees:
            names += [f"{info.name};width={TREE_WIDTH}" for info in drafters if info.type in BRANCHING]
        names += ["auto"] if len(drafters) > 1 else []
    arms = [parse_arm(name) for name in names]
    for arm in arms:
        if arm.drafter not in {*known, "auto"}:
            raise StartError(f"--arms: {arm.name} is not loaded; expected some of: {', '.join(sorted(known))}, auto")
        if arm.width > 1 and not numerics.trees:
            raise StartError(f"--arms: {arm.name}: trees are not claimed to be equal here; leave it out")
    return arms


def cells_of(arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
    """Arms and how many at a time: all but the reference itself."""
    every = [(arm, at_once) for at_once in AT_ONCE for arm in (Arm(OFF, OFF), *arms)]
    return every[1:]


def measurements(records: Sequence[Record], arms: Sequence[Arm]) -> int:
    """How often ``done`` will be called."""
    return len(TEMPERATURES) * (1 + 2 * len(cells_of(arms))) + 2 * COST_REPEATS * min(COST_PROMPTS, len(records))


def run_identity(plan: Plan, engine: AloneEngine, arms: Sequence[Arm], done: Callable[[str], None]) -> Identity:
    """Every cell over the plan's records; ``done`` hears of each part."""
    facts = surroundings()
    cells, cost = asyncio.run(_measure(plan, engine, arms, done))
    facts |= {"engine": {"numerics": engine.numerics, "drafters": engine.drafters}}
    return Identity(len(plan.records), cells, cost, facts)


async def _measure(
    plan: Plan, engine: AloneEngine, arms: Sequence[Arm], done: Callable[[str], None]
) -> tuple[list[Cell], Ratio | None]:
    cells = []
    for temperature in TEMPERATURES:
        records = [at_temperature(record, temperature) for record in plan.records]
        at = msgspec.structs.replace(plan, records=records)
        plain = await _ask(at, engine, Arm(OFF, OFF), 1, logprobs=True)
        done(f"T = {temperature:g}, plain and alone")
        for arm, at_once in cells_of(arms):
            cell = Cell(temperature, at_once, arm.name)
            for logprobs in (False, True):
                said = await _ask(at, engine, arm, at_once, logprobs=logprobs)
                for record, mine, other in zip(records, said, plain, strict=True):
                    cell.compare(record, mine, other)
                done(f"T = {temperature:g}, {arm.name}, {at_once} at a time")
            cells.append(cell)
    return cells, await _cost(plan, engine, done)


async def _ask(plan: Plan, engine: AloneEngine, arm: Arm, at_once: int, *, logprobs: bool) -> list[Said]:
    """Every prompt of the plan."""
    wanted = {"logprobs": True, "top_logprobs": TOP} if logprobs else {}
    decision = arm.decision([info.name for info in engine.drafters])
    salt = f"{arm.name}#{at_once}#{logprobs}"
    submissions = [
        engine.submission(msgspec.structs.replace(record, body=record.body | wanted), decision, salt, plan.max_tokens)
        for record in plan.records
    ]
    heard: dict[str, list[TokenLogprob]] = {submission.id: [] for submission in submissions}

    def hear(delta: Delta) -> None:
        heard[delta.id] += delta.logprobs or []

    answers = await engine.answer(submissions, at_once, hear)
    return [Said(answer, heard[submission.id]) for submission, answer in zip(submissions, answers, strict=True)]


async def _cost(plan: Plan, engine: AloneEngine, done: Callable[[str], None]) -> Ratio | None:
    """Plain decoding, one at a time, under the proven and under the numeric rules in alternating order."""
    from specproxy.engine.runner import NUMERIC

    proven = engine.work(lambda assembled: assembled.engine.runner)
    runners = {OFF: proven, OFF_NUMERIC: proven.under(NUMERIC)}
    arms = [Arm(OFF, OFF), Arm(OFF_NUMERIC, OFF, numeric=True)]

    def use(runner: Runner) -> None:
        def change(assembled: Assembled) -> None:
            assembled.engine.runner = runner

        engine.work(change)

    async def answer(record: Record, arm: Arm, repeat: int) -> Answer:
        use(runners[arm.name])
        return await engine.ask(record, arm, repeat, max_tokens=plan.max_tokens)

    records = plan.records[:COST_PROMPTS]
    try:
        for arm in arms:
            await answer(records[0], arm, -1)
        results = await measure(
            make_blocks(records, 1, COST_REPEATS), arms, answer, lambda measured: done(f"cost, {measured.arm}")
        )
    finally:
        use(proven)
    logs = log_ratios(results, OFF, OFF_NUMERIC)
    return paired_ratio(logs) if logs else None


def identity_table(identity: Identity) -> Grid:
    """A row a cell, then what they come to."""
    head = ["T", "at a time", "arm", "answers", "tokens", "logprobs", "drafted", "accepted", "differing"]
    rows = [[f"{cell.temperature:g}", str(cell.at_once), cell.arm, *_counts([cell])] for cell in identity.cells]
    rows.append(["all", "", "", *_counts(identity.cells)])
    title = f"speculation on against off, {identity.prompts} prompts, each asked for tokens and again with logprobs"
    return Grid(title, head, rows)


def _counts(cells: Sequence[Cell]) -> list[str]:
    columns = [(c.answers, c.tokens, c.logprobs, c.drafted, c.accepted, c.differing) for c in cells]
    return [f"{sum(column):,}" for column in zip(*columns, strict=True)]


def verdict(identity: Identity) -> list[str]:
    """What was found, for people: every cell with a difference, and the cost."""
    lines = [
        f"T = {cell.temperature:g}, {cell.arm}, {cell.at_once} at a time: {cell.differing} of {cell.answers} answers "
        f"differ: {cell.first_difference}"
        for cell in identity.cells
        if cell.differing
    ]
    lines = lines or ["every token and every logprob is that of plain decoding alone"]
    if identity.cost is not None:
        cost = identity.cost
        lines.append(
            f"plain decoding under the proven rules runs at {cost.mean:.3f} [{cost.low:.3f}, {cost.high:.3f}] of plain "
            "decoding under numeric ones"
        )
    return lines
