"""Between two ranks, too, speculation changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from specproxy.config.schema import DrafterConfig
from specproxy.errors import ModelLoadError
from tests.support.identity import Identity
from tests.tensor_parallel.conftest import Shared

DRAFTERS = {
    "ngram": DrafterConfig(type="ngram"),
    "replay": DrafterConfig(type="replay", options={"shape": "mixed"}),
}


@pytest.fixture(scope="module")
def identity(shared: Shared, write_model: Callable[..., str]) -> Iterator[Identity]:
    """The experiment on a bfloat16 Llama that two ranks share."""
    with shared(DRAFTERS, path=write_model("llama"), max_model_len=512) as driver:
        yield Identity(driver, max_tokens=24)


def test_two_ranks_are_proven_bitwise(identity: Identity) -> None:
    """The self-test, which both ranks run in step, finds rows independent of each other, trees included."""
    rules = identity.driver.engine.runner.rules
    assert (rules.exactness, rules.trees) == ("bitwise", True)
    assert len(rules.widths) > 1


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("drafter", ["ngram", "replay", "replay_tree"])
def test_speculation_changes_nothing(
    identity: Identity, mini: list[dict[str, Any]], drafter: str, temperature: float
) -> None:
    """With drafts of chains and trees, several sequences together, preempted and resumed, every answer is the plain
    one, token for token and logprob for logprob."""
    case = {"temperature": temperature, "drafter": drafter, "k": 4, "together": 4, "cache": "hit", "preempt": True}
    case |= {"resume": drafter == "ngram", "sampling": "plain", "n": 1}
    records = [record for record in mini if len(record["ids"]) < 400][:4]
    assert identity.mismatches(case, records) == []
    if drafter.startswith("replay"):
        counts = identity.counts["replay"]
        assert 0 < sum(counts.accepted_at) < counts.drafted


def test_a_drafter_that_runs_the_target_is_refused(identity: Identity) -> None:
    """layer_skip would run layers on rank 0 alone; the engine goes on without it."""
    with pytest.raises(ModelLoadError, match=r"drafters\.early: layer_skip needs the whole target"):
        identity.driver.assembled.load_drafter("early", DrafterConfig(type="layer_skip"))
    assert [drafter.name for drafter in identity.driver.assembled.drafter_infos()] == ["ngram", "replay"]
