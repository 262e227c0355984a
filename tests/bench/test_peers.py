"""transformers' generate beside ours, on the house model grown into a larger shape."""

from __future__ import annotations

import asyncio

import pytest

from specproxy.bench.arms import Arm
from specproxy.bench.peers import ASSISTED, COMPILED, LOOKUP, PLAIN, Peers, Stock, peer_arms
from specproxy.bench.records import bundled, load_records
from specproxy.models.loading import find_model

TOKENS = 6


def answers_of(target: str, draft: str) -> dict[str, list[int]]:
    """What each way says, in float32, where all of them agree."""
    stocks = [Stock(find_model("house", role), grow) for role, grow in (("target", target), ("draft", draft))]
    peers = Peers.load(stocks[0], stocks[1], dtype="float32", threads=1)
    record = load_records(bundled())[0]
    found = {}
    for arm in peer_arms(assistant=True, compiled=True):
        answer = asyncio.run(peers.answer(record, arm, max_tokens=TOKENS))
        assert answer.error is None
        assert 0 < answer.ttft_s <= answer.total_s
        found[arm.name] = answer.token_ids
        if arm.name == COMPILED:  # what the first answer left in the cache is gone
            assert asyncio.run(peers.answer(record, arm, max_tokens=TOKENS)).token_ids == answer.token_ids
    return found


def test_grown_peers_say_what_the_small_model_says() -> None:
    """Every way, plain, assisted, by lookup and over a static cache; padding ids are never among it."""
    grown = answers_of("tiny-8b", "tiny-1b")
    assert set(grown) == {PLAIN, ASSISTED, LOOKUP, COMPILED}
    assert grown == answers_of("", "")
    assert max(token for ids in grown.values() for token in ids) < 8192


def test_a_prompt_that_does_not_fit_the_static_cache_is_an_error() -> None:
    """It would be compiled anew, and measured while compiling."""
    peers = Peers.load(Stock(find_model("house", "draft")), None, dtype="float32", threads=1)
    record = load_records(bundled())[0]
    answer = asyncio.run(peers.answer(record, Arm(COMPILED, None, peer=True), max_tokens=3000))
    assert "do not fit a static cache" in (answer.error or "")


@pytest.mark.parametrize(("assistant", "compiled", "count"), [(True, True, 4), (False, True, 3), (False, False, 2)])
def test_ways_that_cannot_be_are_not_measured(assistant: bool, compiled: bool, count: int) -> None:
    """No assistant without a draft model; nothing compiled where generate does not compile."""
    arms = peer_arms(assistant=assistant, compiled=compiled)
    assert len(arms) == count
    assert all(arm.peer for arm in arms)
