"""Throughput with several sequences at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from specproxy.bench.batches import MOST_BLOCKS, check_sizes, choose, make_blocks_of, with_room
from specproxy.bench.overhead import ROUNDS
from specproxy.bench.records import Record
from specproxy.bench.session import Plan
from specproxy.config.schema import StartConfig
from specproxy.errors import StartError


def plan_of(prompts: int, repeats: int = 1) -> Plan:
    """Prompts that are told apart by their id."""
    records = [Record(f"p{i}", "chat", {"messages": []}, i) for i in range(prompts)]
    return Plan(records=records, arms=[], repeats=repeats)


def test_each_pass_cuts_the_prompts_anew() -> None:
    """One block of all prompts is not one measurement: further passes go through them in another order."""
    blocks = make_blocks_of(plan_of(16), 4)
    assert [len(block.records) for block in blocks] == [4 * ROUNDS] * 4
    assert {frozenset(record.id for record in block.records) for block in blocks} == {
        frozenset(f"p{i}" for i in range(16))
    }
    assert len({tuple(record.id for record in block.records) for block in blocks}) == 4
    assert [(block.number, block.repeat) for block in blocks] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert blocks == make_blocks_of(plan_of(16), 4)


def test_small_sizes_do_not_take_all_prompts() -> None:
    """As many blocks of a pass as an interval needs; repeats are passes."""
    assert len(make_blocks_of(plan_of(400), 1)) == MOST_BLOCKS
    assert len(make_blocks_of(plan_of(400, repeats=2), 1)) == 2 * MOST_BLOCKS


def test_too_few_prompts_are_one_message() -> None:
    """A loop that empties early would be measured as something else."""
    check_sizes(plan_of(16), [1, 4])
    with pytest.raises(StartError, match=r"8 at a time takes 32 prompts, there are 16"):
        check_sizes(plan_of(16), [1, 8])


def test_the_engine_has_room_for_the_largest_size() -> None:
    """More sequences than are configured, never fewer."""
    assert with_room(StartConfig(), 64).model.max_sequences == 64
    assert with_room(StartConfig(), 1).model.max_sequences == StartConfig().model.max_sequences


def test_routes_are_not_for_the_engine_alone() -> None:
    """The policy arm is refused; off is always measured first."""
    assert [arm.name for arm in choose(["auto", "off"])] == ["off", "auto"]
    with pytest.raises(StartError, match="needs a server's routes"):
        choose(["policy"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_measures_throughput(run_bench: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    """Plain and drafted, one and two at a time: the same answers, and a ratio with its blocks."""
    small = ("--limit", "2", "--categories", "edit,json,chat,code", "--max-tokens", "8", "--json")
    code, report, shown = run_bench("--batch", "1,2", "--arms", "ngram;k=4", *small)
    assert code == 0, shown
    assert report["sizes"] == [1, 2]
    for summary in report["categories"]:
        plain, drafted = summary["arms"]
        assert (plain["arm"], drafted["arm"], drafted["failed"]) == ("off", "ngram;k=4", 0)
        assert drafted["identical"] == drafted["compared"] >= 16
        assert drafted["ratio"]["units"] >= 2
    assert "throughput by sequences at a time" in shown
