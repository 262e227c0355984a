"""What is tried for a route."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from specproxy.policy.catalogue import Catalogue
from specproxy.policy.policy import PolicySet
from specproxy.tune.choices import LEAST_NODES, Choice, choices, describe
from specproxy.vocabulary import MAX_TREE_NODES, Decision, DrafterInfo

NGRAM = DrafterInfo("ngram", "ngram", 16, None, "n")
HEAD = DrafterInfo("eagle3", "eagle3", 8, 1024, "e")
OFTEN = DrafterInfo("prediction", "prediction", 63, None, "p")
PLAIN = Decision("r", "ab" * 32, reason="speculation is off on route r")


def names(found: list[Choice], *drafters: DrafterInfo) -> list[str]:
    """The choices as people read them."""
    return [describe(choice.decision(PLAIN, [info.name for info in drafters])) for choice in found]


def test_chains_of_one_drafter_go_up_to_its_limit() -> None:
    """Free ranges and ones that must draft at least half; no auto where there is nothing to choose."""
    found = choices(PLAIN, [DrafterInfo("ngram", "ngram", 5, None, "n"), OFTEN], trees=True)
    assert names(found) == [
        "ngram, k 0 to 2",
        "ngram, k 0 to 4",
        "ngram, k 2 to 4",
        "ngram, k 0 to 5",
        "ngram, k 2 to 5",
    ]


def test_auto_is_tried_among_several() -> None:
    """With every loaded drafter, also the one that only answers requests of its own."""
    found = choices(PLAIN, [OFTEN, NGRAM, HEAD], trees=False)
    auto = [choice.decision(PLAIN, ["prediction", "ngram", "eagle3"]) for choice in found if choice.drafter == "auto"]
    assert {decision.drafters for decision in auto} == {("prediction", "ngram", "eagle3")}
    assert max(decision.k_max or 0 for decision in auto) == 16


def test_only_drafters_that_branch_grow_trees_and_only_where_they_may() -> None:
    """A tree has as many nodes as its width and depth allow."""
    trees = [choice for choice in choices(PLAIN, [NGRAM, HEAD], trees=True) if choice.width > 1]
    assert {choice.drafter for choice in trees} == {"eagle3"}
    assert all(choice.nodes == choice.width * choice.k_max <= MAX_TREE_NODES for choice in trees)
    assert not [choice for choice in choices(PLAIN, [NGRAM, HEAD], trees=False) if choice.width > 1]


def test_k_stays_within_the_drafters_window() -> None:
    """Where a draft would not fit, it is not tried."""
    found = choices(PLAIN, [DrafterInfo("d", "draft_model", 16, 9, "d")], trees=False)
    assert max(choice.k_max for choice in found) == 8


def test_what_the_route_does_already_is_not_tried_again() -> None:
    """Off on a plain route; the range that a drafting route has."""
    assert "off" not in names(choices(PLAIN, [NGRAM], trees=False))
    now = Choice("ngram", 0, 4).decision(PLAIN, ["ngram"])
    found = names(choices(now, [NGRAM], trees=False))
    assert "off" in found
    assert "ngram, k 0 to 4" not in found


@pytest.mark.parametrize(
    "choice",
    [Choice("off"), Choice("auto", 4, 8), Choice("draft_model", 0, 16, nodes=16), Choice("draft_model", 0, 4, 2, 8)],
)
def test_a_choice_decides_as_the_policy_that_is_written_for_it(tmp_path: Path, choice: Choice) -> None:
    """So that what was measured is what will serve."""
    catalogue = Catalogue().with_engine([NGRAM, DrafterInfo("draft_model", "draft_model", 16, 1024, "d")])
    content = {"routes": [{"name": "r", "speculate": choice.speculate()}]}
    (tmp_path / "a.yaml").write_bytes(msgspec.json.encode(content))
    policies = PolicySet.load(tmp_path, catalogue)
    (route,) = policies.routes
    mine = choice.decision(PLAIN, list(catalogue.drafter_names))
    assert policies.warnings == ()
    assert choice.nodes >= min(LEAST_NODES, choice.width * choice.k_max)
    assert msgspec.structs.replace(route.decision, revision=mine.revision) == mine
