"""Blocks and the order in which they are measured."""

from __future__ import annotations

import asyncio

from specproxy.bench.arms import Arm
from specproxy.bench.client import Answer
from specproxy.bench.records import Record
from specproxy.bench.runner import make_blocks, measure


def records(*categories: str) -> list[Record]:
    """One record per named category, numbered."""
    return [Record(f"{name}-{i}", name, {"messages": []}, seed=i) for i, name in enumerate(categories)]


def test_blocks_hold_one_category_each() -> None:
    """Prompts of a block run together, so they never mix categories; the last block may be smaller."""
    blocks = make_blocks(records("a", "b", "a", "a"), concurrency=2, repeats=1)
    assert [[record.id for record in block.records] for block in blocks] == [["a-0", "a-2"], ["a-3"], ["b-1"]]


def test_all_prompts_are_asked_before_any_is_repeated() -> None:
    """Repeats are whole passes, and a block keeps its number in all of them."""
    blocks = make_blocks(records("a", "b"), concurrency=1, repeats=2)
    assert [(block.number, block.repeat) for block in blocks] == [(0, 0), (1, 0), (0, 1), (1, 1)]


async def test_arms_follow_each_other_on_every_block() -> None:
    """Each block is answered by all arms, one after the other, before the next block begins."""
    asked: list[tuple[str, str]] = []

    async def answer(record: Record, arm: Arm, repeat: int) -> Answer:
        asked.append((record.id, arm.name))
        return Answer(tokens=1, total_s=0.5, finish_reason="stop")

    seen = []
    blocks = make_blocks(records("a", "b"), concurrency=1, repeats=1)
    results = await measure(blocks, [Arm("x", None), Arm("y", None)], answer, seen.append)
    assert asked == [("a-0", "x"), ("a-0", "y"), ("b-1", "y"), ("b-1", "x")]
    assert results == seen


async def test_prompts_of_a_block_run_at_the_same_time() -> None:
    """A block of three asks all three before any is answered, and is timed as a whole."""
    together = asyncio.Barrier(3)

    async def answer(record: Record, arm: Arm, repeat: int) -> Answer:
        await asyncio.wait_for(together.wait(), 5)
        return Answer(tokens=2, total_s=9.0, finish_reason="stop")

    blocks = make_blocks(records("a", "a", "a"), concurrency=3, repeats=1)
    (measured,) = await measure(blocks, [Arm("x", None)], answer, lambda _: None)
    assert measured.tokens == 6
    assert 0 < measured.seconds < 5


async def test_a_single_prompt_is_timed_to_its_last_token() -> None:
    """What the client does after the last token does not count against the server."""

    async def answer(record: Record, arm: Arm, repeat: int) -> Answer:
        await asyncio.sleep(0.01)
        return Answer(tokens=5, total_s=0.005, finish_reason="stop")

    (measured,) = await measure(make_blocks(records("a"), 1, 1), [Arm("x", None)], answer, lambda _: None)
    assert measured.seconds == 0.005
    assert measured.tokens_per_s == 1000
