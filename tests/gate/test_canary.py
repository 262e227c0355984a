"""Who is served by which arm."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specproxy.gate.canary import arm_of, in_canary, in_hold_out, place

KEYS = [f"conversation-{number}" for number in range(20_000)]
SHARES = st.floats(0, 1)
Member = Callable[[str, str, float], bool]


@pytest.mark.parametrize("member", [in_canary, in_hold_out])
@given(key=st.text(st.characters(codec="utf-8")), one=SHARES, other=SHARES)
def test_whoever_is_in_stays_in_as_the_share_grows(member: Member, key: str, one: float, other: float) -> None:
    """Membership is monotone in the share, empty at 0 and complete at 1."""
    low, high = sorted((one, other))
    assert member("salt", key, low) <= member("salt", key, high)
    assert (member("salt", key, 0.0), member("salt", key, 1.0)) == (False, True)


@pytest.mark.parametrize("member", [in_canary, in_hold_out])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.5])
def test_the_share_of_conversations_is_the_share_asked_for(member: Member, share: float) -> None:
    """Within five standard errors, over 20,000 conversations."""
    seen = sum(member("salt", key, share) for key in KEYS) / len(KEYS)
    assert abs(seen - share) < 5 * math.sqrt(share * (1 - share) / len(KEYS))


def test_revisions_and_the_hold_out_draw_independently() -> None:
    """Being in one canary says nothing about the next one, nor about the hold-out."""
    first = {key for key in KEYS if in_canary("a" * 64, key, 0.25)}
    for member, salt in ((in_canary, "b" * 64), (in_hold_out, "a" * 64), (in_hold_out, "default")):
        both = sum(member(salt, key, 0.25) for key in first) / len(first)
        assert abs(both - 0.25) < 5 * math.sqrt(0.25 * 0.75 / len(first))


def test_places_never_change() -> None:
    """A restart or a new version must not move anybody: the values are part of the contract."""
    assert place("canary:r", "k") == 0.30766354802683626
    assert place("a", "bc") != place("ab", "c")


def test_the_hold_out_comes_first_and_outlives_revisions() -> None:
    """At a full canary the hold-out is plain, everybody else the candidate's; the next revision keeps it so."""
    for revision in ("a" * 64, "b" * 64):
        for key in KEYS[:2000]:
            arm = arm_of("default", key, hold_out=0.05, candidate=revision, share=1.0)
            assert arm == ("plain" if in_hold_out("default", key, 0.05) else "candidate")


def test_without_a_candidate_everybody_else_is_active() -> None:
    """Two arms only."""
    assert {arm_of("default", key, hold_out=0.05) for key in KEYS[:2000]} == {"plain", "active"}


def test_a_growing_canary_moves_conversations_one_way_only() -> None:
    """From active to the candidate, never back, over the default steps."""
    for key in KEYS[:1000]:
        arms = [
            arm_of("default", key, hold_out=0.01, candidate="a" * 64, share=share)
            for share in (0.01, 0.05, 0.25, 0.5, 1.0)
        ]
        assert arms == sorted(arms)
