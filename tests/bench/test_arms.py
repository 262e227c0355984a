"""Arms and their order."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from specproxy.bench.arms import ARM_HEADER, Arm, order, parse_arm, parse_arms
from specproxy.errors import StartError


def test_off_is_always_measured_first() -> None:
    """Whatever is asked for, the plain arms are there to compare with, and nothing is measured twice."""
    assert [arm.name for arm in parse_arms(["auto", "off", "auto"], numeric=True)] == ["off", "off-numeric", "auto"]
    assert [arm.name for arm in parse_arms([], numeric=False)] == ["off"]


@pytest.mark.parametrize(
    "text", ["", "ngram;k=0", "ngram;k", "ngram;tree=2", "; k=2", "ngram k=2", "mtp;nodes=3", "mtp;width=2;k=1"]
)
def test_what_is_not_an_arm_is_refused(text: str) -> None:
    """An arm that would be misunderstood is an error that shows the forms."""
    with pytest.raises(StartError, match=r"expected off, policy, auto, a drafter, or DRAFTER;k=N;width=W;nodes=N"):
        parse_arm(text)


@pytest.mark.parametrize(
    ("text", "k", "width", "nodes"),
    [
        ("mtp", None, 1, 16),
        ("mtp;k=3", 3, 1, 16),
        ("mtp;width=2", None, 2, 16),
        ("mtp;k=4;width=3;nodes=12", 4, 3, 12),
    ],
)
def test_an_arm_says_how_much_is_drafted(text: str, k: int | None, width: int, nodes: int) -> None:
    """K, width and nodes are read, and become the engine's decision; K is fixed where it is given."""
    arm = parse_arm(text)
    assert (arm.drafter, arm.k, arm.width, arm.nodes) == ("mtp", k, width, nodes)
    decision = arm.decision(["mtp", "ngram"])
    assert (decision.drafters, decision.k_max, decision.adaptive) == (("mtp",), k, k is None)
    assert (decision.tree_width, decision.tree_nodes, decision.auto) == (width, nodes, False)


def test_the_controller_chooses_among_all_in_auto() -> None:
    """The arm auto decides for every drafter, off for none."""
    auto, off = (parse_arm(text).decision(["mtp", "ngram"]) for text in ("auto", "off"))
    assert (auto.drafters, auto.auto) == (("mtp", "ngram"), True)
    assert off.drafters == ()


@pytest.mark.parametrize(
    ("name", "own", "expected"),
    [
        ("policy", True, {}),
        ("policy", False, {}),
        ("off", True, {"x-specproxy-speculate": "off"}),
        ("off-numeric", True, {"x-specproxy-speculate": "off"}),
        ("ngram;k=8", True, {ARM_HEADER: "ngram;k=8"}),
        ("ngram;k=8", False, {"x-specproxy-speculate": "ngram;k=8"}),
    ],
)
def test_headers_ask_for_the_arm(name: str, expected: dict[str, str], *, own: bool) -> None:
    """Our own server has routes for the arm; a foreign one is asked by the override header."""
    assert parse_arm(name).headers(own_server=own) == expected


def test_every_arm_stands_everywhere_and_follows_every_other() -> None:
    """Over two rounds each arm is equally often first, and each ordered pair of neighbours occurs."""
    arms = [Arm(name, None) for name in "abc"]
    orders = [[arm.name for arm in order(arms, turn)] for turn in range(6)]
    assert Counter(names[0] for names in orders) == {"a": 2, "b": 2, "c": 2}
    assert {pair for names in orders for pair in pairwise(names)} == {(x, y) for x in "abc" for y in "abc" if x != y}


def test_two_arms_alternate() -> None:
    """With two arms neither goes first more than twice in a row."""
    arms = [Arm(name, None) for name in "ab"]
    firsts = [order(arms, turn)[0].name for turn in range(8)]
    assert firsts == ["a", "b", "b", "a", "a", "b", "b", "a"]
