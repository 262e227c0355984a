"""How speed depends on how much is drafted: fixed K for chains, width and depth for trees, one drafter after the other.

The engine runs in this process, so that a drafter's whole range takes one load. Every prompt is answered plainly and
with each size of one drafter, one right after the other; sizes of another drafter come in another round, so that what
the machine does between the two does not stand between a size and its baseline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from specproxy.bench.arms import OFF, Arm, parse_arm
from specproxy.bench.client import Answer
from specproxy.bench.field import Grid
from specproxy.bench.records import Record, at_temperature
from specproxy.bench.runner import Measured, make_blocks, measure
from specproxy.bench.session import Plan, surroundings
from specproxy.bench.stats import Ratio
from specproxy.bench.summary import CategorySummary, summarise
from specproxy.config.schema import DrafterConfig
from specproxy.vocabulary import MAX_TREE_NODES, DrafterInfo

if TYPE_CHECKING:
    from specproxy.bench.alone import AloneEngine

MAX_K = 12
CHAIN_KS = range(1, MAX_K + 1)
TREE_WIDTHS = (2, 3, 4)
TREE_DEPTHS = (1, 2, 3, 4, 6, 8)
BRANCHING = frozenset({"eagle", "eagle3", "medusa", "mtp"})
"""Types whose drafters grow trees."""
WARM_UP_TOKENS = 16


class Line(Struct, frozen=True):
    """One line of the plot: a drafter at one width (1: chains), with the levels at which it was measured."""

    drafter: str
    width: int
    levels: list[int]

    @property
    def name(self) -> str:
        """For people."""
        return self.drafter if self.width == 1 else f"{self.drafter}, tree of width {self.width}"

    def arms(self) -> list[Arm]:
        """An arm for each number of levels. A tree has as many nodes as its width and depth allow."""
        if self.width == 1:
            return [parse_arm(f"{self.drafter};k={k}") for k in self.levels]
        nodes = [min(MAX_TREE_NODES, k * self.width) for k in self.levels]
        sizes = zip(self.levels, nodes, strict=True)
        return [parse_arm(f"{self.drafter};k={k};width={self.width};nodes={n}") for k, n in sizes]


class Point(Struct, frozen=True):
    """One size of one line, over all prompts. ``ratio`` to plain; ``length``: tokens per target step."""

    levels: int
    ratio: Ratio | None
    length: float | None
    acceptance: float | None
    tokens_per_s: float


class Curve(Struct, frozen=True):
    """A line as measured."""

    drafter: str
    width: int
    name: str
    points: list[Point]

    def best(self) -> Point | None:
        """The fastest size."""
        measured = [point for point in self.points if point.ratio is not None]
        return max(measured, key=lambda point: point.ratio.mean if point.ratio else 0.0, default=None)


class Sweep(Struct, frozen=True):
    """The whole sweep; ``categories`` has every single measurement's summary, a list a line."""

    curves: list[Curve]
    categories: list[list[CategorySummary]]
    facts: dict[str, Any]

    def to_json(self) -> str:
        """One line."""
        return msgspec.json.encode(self).decode()


def deep(drafters: dict[str, DrafterConfig]) -> dict[str, DrafterConfig]:
    """The drafters, allowed to draft as deep as the sweep goes. The replay drafter has no speed to speak of."""
    chosen = {name: drafter for name, drafter in drafters.items() if drafter.type not in ("replay", "prediction")}
    return {name: msgspec.structs.replace(drafter, max_k=MAX_K) for name, drafter in chosen.items()}


def lines(drafters: Sequence[DrafterInfo], *, trees: bool) -> list[Line]:
    """What is measured of the loaded drafters; ``trees``: the engine may draft them."""
    found = []
    for info in drafters:
        found.append(Line(info.name, 1, [k for k in CHAIN_KS if k <= info.max_k]))
        if trees and info.type in BRANCHING:
            depths = [k for k in TREE_DEPTHS if k <= info.max_k]
            found += [Line(info.name, width, depths) for width in TREE_WIDTHS]
    return found


def measurements(plan: Plan, chosen: Sequence[Line]) -> int:
    """How often ``done`` will be called."""
    return len(make_blocks(plan.records, 1, plan.repeats)) * sum(len(line.levels) + 1 for line in chosen)


async def measure_sweep(plan: Plan, engine: AloneEngine, chosen: Sequence[Line], done: Callable[[str], None]) -> Sweep:
    """Every line on every prompt; ``done`` hears of each measurement."""
    facts = surroundings()
    curves, categories = [], []
    for line in chosen:
        summaries = await _measure_line(plan, engine, line, done)
        curves.append(_curve(line, summaries[-1]))
        categories.append(summaries)
    return Sweep(curves, categories, facts | {"engine": {"numerics": engine.numerics, "drafters": engine.drafters}})


async def _measure_line(
    plan: Plan, engine: AloneEngine, line: Line, done: Callable[[str], None]
) -> list[CategorySummary]:
    arms = [Arm(OFF, OFF), *line.arms()]

    async def answer(record: Record, arm: Arm, repeat: int) -> Answer:
        asked = at_temperature(record, 0.0) if plan.greedy else record
        return await engine.ask(asked, arm, repeat, max_tokens=plan.max_tokens)

    def noted(measured: Measured) -> None:
        done(f"{measured.block.category}, {measured.arm}")

    for arm in arms:
        await engine.ask(plan.records[0], arm, -1, max_tokens=min(WARM_UP_TOKENS, plan.max_tokens))
    results = await measure(make_blocks(plan.records, 1, plan.repeats), arms, answer, noted)
    return summarise(results, arms, exact=engine.numerics.exactness != "numeric")


def _curve(line: Line, whole: CategorySummary) -> Curve:
    """The row over all categories (the only one's where there is one) as points."""
    found = {arm.arm: arm for arm in whole.arms}
    points = []
    for k, arm in zip(line.levels, line.arms(), strict=True):
        said = found[arm.name]
        points.append(Point(k, said.ratio, said.accepted_length, said.acceptance, said.tokens_per_s))
    return Curve(line.drafter, line.width, line.name, points)


def best_sizes(sweep: Sweep) -> Grid:
    """A row a line: its ratio at each number of levels, and the best one."""
    levels = sorted({point.levels for curve in sweep.curves for point in curve.points})
    rows = []
    for curve in sweep.curves:
        ratios = {point.levels: point.ratio for point in curve.points}
        cells = [f"{ratio.mean:.2f}" if (ratio := ratios.get(k)) else "-" for k in levels]
        best = curve.best()
        rows.append([curve.name, *cells, "-" if best is None else str(best.levels)])
    return Grid("ratio to plain by levels drafted", ["drafter", *map(str, levels), "best"], rows)


def run_sweep(plan: Plan, engine: AloneEngine, chosen: Sequence[Line], done: Callable[[str], None]) -> Sweep:
    """``measure_sweep`` in an event loop of its own."""
    return asyncio.run(measure_sweep(plan, engine, chosen, done))
