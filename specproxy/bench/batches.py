"""Throughput with several sequences at a time: drafting against plain decoding, the engine in this process.

A block is a closed loop: where one answer ends the next begins. Every arm answers every block, one right after the
other, so that the ratio is one of the same prompts on the same machine; each pass over the prompts cuts them into other
blocks.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from specproxy.bench.arms import OFF, POLICY, Arm, order, parse_arm
from specproxy.bench.field import Grid
from specproxy.bench.overhead import ROUNDS, make_mixed_blocks
from specproxy.bench.records import at_temperature
from specproxy.bench.runner import Block, Measured
from specproxy.bench.session import Plan, surroundings
from specproxy.bench.summary import ALL, CategorySummary, summarise
from specproxy.config.schema import StartConfig
from specproxy.errors import StartError

if TYPE_CHECKING:
    from specproxy.bench.alone import AloneEngine

LEAST_BLOCKS, MOST_BLOCKS = 4, 12
"""Of every size, in all and in one pass: with fewer there is no interval to speak of, and small sizes cut the prompts
into more than it needs."""


class Batches(Struct, frozen=True):
    """A summary a size, in place of categories."""

    sizes: list[int]
    categories: list[CategorySummary]
    facts: dict[str, Any]

    def to_json(self) -> str:
        """One line."""
        return msgspec.json.encode(self).decode()


def choose(texts: Sequence[str]) -> list[Arm]:
    """Off, and the arms that ``texts`` name. Raises StartError for one that needs routes."""
    arms = [Arm(OFF, OFF), *(parse_arm(text) for text in texts)]
    if any(arm.name == POLICY for arm in arms):
        raise StartError(f"--arms: {POLICY} needs a server's routes; expected auto or drafters with the engine alone")
    return list({arm.name: arm for arm in arms}.values())


def check_sizes(plan: Plan, sizes: Sequence[int]) -> None:
    """Raises StartError where there are too few prompts to keep the largest size busy."""
    needed = max(sizes) * ROUNDS
    if len(plan.records) < needed:
        raise StartError(
            f"--batch: {max(sizes)} at a time takes {needed} prompts, there are {len(plan.records)}; raise --limit, "
            "name a longer file, or leave the size out"
        )


def with_room(config: StartConfig, most: int) -> StartConfig:
    """The configuration of an engine that runs ``most`` sequences at a time."""
    model = msgspec.structs.replace(config.model, max_sequences=max(most, config.model.max_sequences))
    return msgspec.structs.replace(config, model=model)


def make_blocks_of(plan: Plan, size: int) -> list[Block]:
    """The blocks of one size: every pass over the prompts has its own order, the same in every run, and there are as
    many passes as the plan repeats, or as make ``LEAST_BLOCKS``."""
    found: list[Block] = []
    turn = 0
    while turn < plan.repeats or len(found) < LEAST_BLOCKS:
        records = list(plan.records)
        random.Random(turn).shuffle(records)
        one = msgspec.structs.replace(plan, records=records, concurrency=size, repeats=1)
        for block in make_mixed_blocks(one)[:MOST_BLOCKS]:
            found.append(Block(len(found), f"{size} at a time", block.records, turn))
        turn += 1
    return found


def measurements(plan: Plan, sizes: Sequence[int], arms: Sequence[Arm]) -> int:
    """How often ``done`` will be called."""
    return sum(len(arms) * (len(make_blocks_of(plan, size)) + 1) for size in sizes)


def run_batches(
    plan: Plan, engine: AloneEngine, sizes: Sequence[int], arms: Sequence[Arm], done: Callable[[str], None]
) -> Batches:
    """Every size, one after the other; ``done`` hears of each block."""
    facts = surroundings()
    results = asyncio.run(_measure(plan, engine, sizes, arms, done))
    summaries = summarise(results, arms, exact=engine.numerics.exactness != "numeric")
    by_size = [summary for summary in summaries if summary.category != ALL]
    return Batches(list(sizes), by_size, facts | {"engine": {"numerics": engine.numerics, "drafters": engine.drafters}})


def batches_table(batches: Batches) -> Grid:
    """A row for each size and arm."""
    head = ["sequences", "arm", "tok/s", "ratio [95 %]", "p10-p90 of blocks", "blocks", "len", "accept", "identical"]
    rows = []
    for size, summary in zip(batches.sizes, batches.categories, strict=True):
        for arm in summary.arms:
            ratio, spread, blocks = "-", "-", "-"
            if arm.ratio is not None:
                ratio = f"{arm.ratio.mean:.2f}x [{arm.ratio.low:.2f}, {arm.ratio.high:.2f}]"
                spread, blocks = f"{arm.ratio.p10:.2f}-{arm.ratio.p90:.2f}", str(arm.ratio.units)
            length = "-" if arm.accepted_length is None else f"{arm.accepted_length:.2f}"
            accept = "-" if arm.acceptance is None else f"{arm.acceptance:.0%}"
            same = f"{arm.identical}/{arm.compared}"
            rows.append([str(size), arm.arm, f"{arm.tokens_per_s:.0f}", ratio, spread, blocks, length, accept, same])
    return Grid("throughput by sequences at a time", head, rows)


async def _measure(
    plan: Plan, engine: AloneEngine, sizes: Sequence[int], arms: Sequence[Arm], done: Callable[[str], None]
) -> list[Measured]:
    results = []
    for size in sizes:
        blocks = make_blocks_of(plan, size)
        for arm in arms:  # a whole block: what is compiled or captured depends on how many rows meet
            await _block(plan, engine, msgspec.structs.replace(blocks[0], repeat=-1), size, arm)
            done(f"{size} at a time, warming up")
        for turn, block in enumerate(blocks):
            for arm in order(arms, turn):
                results.append(await _block(plan, engine, block, size, arm))
                done(f"{size} at a time, {arm.name}")
    return results


async def _block(plan: Plan, engine: AloneEngine, block: Block, size: int, arm: Arm) -> Measured:
    decision = arm.decision([info.name for info in engine.drafters])
    salt = f"{arm.name}#{size}#{block.number}#{block.repeat}"
    submissions = [
        engine.submission(at_temperature(record, 0.0) if plan.greedy else record, decision, salt, plan.max_tokens)
        for record in block.records
    ]
    answers = await engine.answer(submissions, size)
    seconds = max(answer.total_s for answer in answers)
    for answer in answers:
        answer.ttft_s = 0.0  # it would be the wait for a place in the loop
    return Measured(block, arm.name, seconds, tuple(answers))
