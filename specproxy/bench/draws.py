"""The comparison of coupled with greedy drafting, as a run: which drafters, which arms, what is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from specproxy.bench.arms import OFF, Arm, parse_arm
from specproxy.bench.client import Answer
from specproxy.bench.coupling import Position, listen
from specproxy.bench.field import Grid
from specproxy.bench.records import Record, at_temperature
from specproxy.bench.runner import Measured, make_blocks, measure
from specproxy.bench.session import Plan, surroundings
from specproxy.bench.stats import Ratio, Share, paired_ratio, pooled_share
from specproxy.bench.summary import ArmSummary, CategorySummary, log_ratios, summarise
from specproxy.config.schema import DrafterConfig
from specproxy.errors import StartError

if TYPE_CHECKING:
    from specproxy.bench.alone import AloneEngine

TEMPERATURES = (0.8, 1.0)
DRAWING = frozenset({"draft_model", "eagle", "eagle3", "layer_skip", "medusa", "mtp"})
"""Types that draw from logits of their own, coupled or greedy as their option ``draw`` says."""
SUFFIX = "-greedy"
WARM_UP_TOKENS = 16


class Draws(Struct, frozen=True):
    """One drafter at one temperature. ``coupled``, ``greedy``: shares of the target's tokens guessed on the same
    logits, one position ahead; ``rejection``: what rejection sampling would accept. ``speed``: tokens/s of the engine
    with coupled over those with greedy drafts, paired by prompt."""

    temperature: float
    drafter: str
    positions: int
    coupled: Share
    greedy: Share
    rejection: Share
    speed: Ratio | None
    engine_coupled: ArmSummary
    engine_greedy: ArmSummary


class Coupling(Struct, frozen=True):
    """All of them, and the engine's runs category by category, a list a temperature."""

    draws: list[Draws]
    categories: list[list[CategorySummary]]
    facts: dict[str, Any]

    def to_json(self) -> str:
        """One line."""
        return msgspec.json.encode(self).decode()


def choose(drafters: dict[str, DrafterConfig], texts: Sequence[str]) -> list[Arm]:
    """The arms that ``texts`` name, all drafters that draw from logits where there are none. Raises StartError for one
    that does not draw, or is not declared."""
    drawing = [name for name, drafter in drafters.items() if drafter.type in DRAWING]
    arms = [parse_arm(text) for text in texts or drawing]
    for arm in arms:
        if arm.drafter not in drawing:
            known = ", ".join(drawing) or "none here"
            raise StartError(f"--coupling: {arm.name} does not draw from logits; expected one of: {known}")
    return arms


def twins(drafters: dict[str, DrafterConfig], arms: Sequence[Arm]) -> dict[str, DrafterConfig]:
    """The drafters of the arms, each as a coupled and as a greedy one."""
    both = {}
    for name in dict.fromkeys(arm.drafter for arm in arms):
        drafter = drafters[name]
        for draw, twin in (("coupled", name), ("greedy", name + SUFFIX)):
            both[twin] = msgspec.structs.replace(drafter, options=drafter.options | {"draw": draw})
    return both


def greedy_twin(arm: Arm) -> Arm:
    """The same arm with greedy drafts."""
    name = arm.name.replace(arm.drafter, arm.drafter + SUFFIX, 1)
    return msgspec.structs.replace(arm, name=name, wish=name, drafter=arm.drafter + SUFFIX)


def measurements(plan: Plan, arms: Sequence[Arm]) -> int:
    """How often ``done`` will be called."""
    blocks = len(make_blocks(plan.records, 1, plan.repeats)) * (2 * len(arms) + 1)
    return len(TEMPERATURES) * (blocks + len({arm.drafter for arm in arms}))


def run_coupling(plan: Plan, engine: AloneEngine, arms: Sequence[Arm], done: Callable[[str], None]) -> Coupling:
    """Both temperatures; ``done`` hears of each part."""
    facts = surroundings()
    draws, categories = [], []
    for temperature in TEMPERATURES:
        records = [at_temperature(record, temperature) for record in plan.records]
        at = msgspec.structs.replace(plan, records=records)
        heard = {name: _listen(at, engine, name, done) for name in dict.fromkeys(arm.drafter for arm in arms)}
        results, summaries = asyncio.run(_measure(at, engine, arms, done))
        categories.append(summaries)
        draws += [_draws(temperature, arm, heard[arm.drafter], results, summaries[-1]) for arm in arms]
    return Coupling(draws, categories, facts | {"engine": {"numerics": engine.numerics, "drafters": engine.drafters}})


def _listen(plan: Plan, engine: AloneEngine, drafter: str, done: Callable[[str], None]) -> list[list[Position]]:
    decision = parse_arm(f"{drafter};k=1").decision([])
    asked = [engine.submission(record, decision, f"listening {drafter}", plan.max_tokens) for record in plan.records]
    heard = engine.work(partial(listen, drafter=drafter, submissions=asked))
    done(f"{drafter}, on the same logits")
    return heard


async def _measure(
    plan: Plan, engine: AloneEngine, arms: Sequence[Arm], done: Callable[[str], None]
) -> tuple[list[Measured], list[CategorySummary]]:
    every = [Arm(OFF, OFF), *(twin for arm in arms for twin in (arm, greedy_twin(arm)))]

    async def answer(record: Record, arm: Arm, repeat: int) -> Answer:
        return await engine.ask(record, arm, repeat, max_tokens=plan.max_tokens)

    def noted(measured: Measured) -> None:
        done(f"{measured.block.category}, {measured.arm}")

    for arm in every:
        await engine.ask(plan.records[0], arm, -1, max_tokens=min(WARM_UP_TOKENS, plan.max_tokens))
    results = await measure(make_blocks(plan.records, 1, plan.repeats), every, answer, noted)
    return results, summarise(results, every, exact=engine.numerics.exactness != "numeric")


def _draws(
    temperature: float, arm: Arm, heard: list[list[Position]], results: Sequence[Measured], whole: CategorySummary
) -> Draws:
    found, twin = {summary.arm: summary for summary in whole.arms}, greedy_twin(arm).name
    logs = log_ratios(results, arm.name, twin)
    return Draws(
        temperature=temperature,
        drafter=arm.name,
        positions=sum(map(len, heard)),
        coupled=pooled_share([[float(position.coupled) for position in text] for text in heard]),
        greedy=pooled_share([[float(position.greedy) for position in text] for text in heard]),
        rejection=pooled_share([[position.rejection for position in text] for text in heard]),
        speed=paired_ratio(logs) if logs else None,
        engine_coupled=found[arm.name],
        engine_greedy=found[twin],
    )


def coupling_table(coupling: Coupling) -> Grid:
    """A row a drafter and temperature."""
    head = ["drafter", "T", "tokens", "coupled right", "greedy right", "rejection"]
    head += ["coupled, greedy tok/s", "ratio [95 %]", "len", "accept"]
    rows = []
    for draw in coupling.draws:
        arms, speed = (draw.engine_coupled, draw.engine_greedy), "-"
        if draw.speed is not None:
            speed = f"{draw.speed.mean:.2f}x [{draw.speed.low:.2f}, {draw.speed.high:.2f}]"
        rows.append(
            [
                draw.drafter,
                f"{draw.temperature:g}",
                str(draw.positions),
                *(_share(share) for share in (draw.coupled, draw.greedy, draw.rejection)),
                ", ".join(f"{arm.tokens_per_s:.0f}" for arm in arms),
                speed,
                ", ".join("-" if arm.accepted_length is None else f"{arm.accepted_length:.2f}" for arm in arms),
                ", ".join("-" if arm.acceptance is None else f"{arm.acceptance:.0%}" for arm in arms),
            ]
        )
    return Grid("coupled against greedy drafting", head, rows)


def _share(share: Share) -> str:
    return f"{share.mean:.1%} [{100 * share.low:.0f}, {100 * share.high:.0f}]"
