"""The measurement itself: blocks of prompts, every arm on each block, one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from specproxy.bench.arms import Arm, order
from specproxy.bench.client import Answer
from specproxy.bench.records import Record

Answerer = Callable[[Record, Arm, int], Awaitable[Answer]]
"""Answers a record as an arm does, in repeat number ``int``."""


class Block(Struct, frozen=True):
    """What is sent at once: as many prompts of one category as run concurrently. ``number`` identifies the prompts,
    ``repeat`` counts how often they were asked before."""

    number: int
    category: str
    records: tuple[Record, ...]
    repeat: int


class Measured(Struct, frozen=True):
    """One block, answered by one arm in ``seconds`` of wall time; answers in the order of the block's records."""

    block: Block
    arm: str
    seconds: float
    answers: tuple[Answer, ...]

    @property
    def failed(self) -> bool:
        """Whether any request of the block has no answer."""
        return any(answer.error is not None for answer in self.answers)

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def tokens_per_s(self) -> float:
        """Speed of the whole block; 0 where nothing was answered."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def make_blocks(records: Sequence[Record], concurrency: int, repeats: int) -> list[Block]:
    """The run's blocks, all prompts once before any is repeated; the last block of a category may be smaller."""
    by_category: dict[str, list[Record]] = {}
    for record in records:
        by_category.setdefault(record.category, []).append(record)
    groups = [
        (category, tuple(members[start : start + concurrency]))
        for category, members in by_category.items()
        for start in range(0, len(members), concurrency)
    ]
    return [
        Block(number, category, members, repeat)
        for repeat in range(repeats)
        for number, (category, members) in enumerate(groups)
    ]


async def measure(
    blocks: Sequence[Block], arms: Sequence[Arm], answer: Answerer, done: Callable[[Measured], None]
) -> list[Measured]:
    """Run every arm on every block. The arms of a block follow each other at once, in alternating order, so that
    whatever else the machine does meets all of them alike."""
    results = []
    for turn, block in enumerate(blocks):
        for arm in order(arms, turn):
            measured = await measure_block(block, arm, answer)
            results.append(measured)
            done(measured)
    return results


async def measure_block(block: Block, arm: Arm, answer: Answerer) -> Measured:
    """All prompts of the block at once, timed together."""
    started = time.perf_counter()
    answers = await asyncio.gather(*(answer(record, arm, block.repeat) for record in block.records))
    seconds = time.perf_counter() - started
    if len(answers) == 1 and answers[0].total_s > 0:
        seconds = answers[0].total_s
    return Measured(block, arm.name, seconds, tuple(answers))
