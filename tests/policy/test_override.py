"""A request's own wish."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from specproxy.errors import InvalidRequest
from specproxy.policy.override import stays_out_of_shadow
from specproxy.policy.policy import PolicySet

if TYPE_CHECKING:
    from tests.policy.conftest import LoadSet, MakeFacts

OPEN = (
    "defaults: {override: true}\nroutes:\n"
    "  - {name: closed, match: {model: closed}, override: false}\n"
    "  - {name: off, match: {model: off}, speculate: off}\n"
    "  - {name: two, match: {model: two}, speculate: {drafters: [ngram, draft_model], k: {min: 2, max: 6}}}\n"
    "  - {name: rest}\n"
)


@pytest.fixture
def policies(load_set: LoadSet) -> PolicySet:
    """Routes that allow it, in several ways, and one that does not."""
    return load_set(OPEN)


def shape(decision: Any) -> tuple[Any, ...]:
    """What an override changes."""
    return decision.drafters, decision.auto, decision.k_min, decision.k_max, decision.adaptive


EVERYTHING = ("prediction", "ngram", "draft_model")


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("off", ((), False, 0, 0, False)),
        ("ngram", (("ngram",), False, 0, None, True)),
        ("ngram;k=3", (("ngram",), False, 3, 3, False)),
        (" ngram ; k = 3 ", (("ngram",), False, 3, 3, False)),
        ("ngram;k=0", ((), False, 0, 0, False)),
        ("auto", (EVERYTHING, True, 0, None, True)),
        ("auto;k=4", (EVERYTHING, True, 4, 4, False)),
    ],
)
def test_header_and_body_text_say_the_same(
    policies: PolicySet, facts_of: MakeFacts, wish: str, expected: tuple[Any, ...]
) -> None:
    """Either way of saying it, and the same both ways at once."""
    header = {"X-Specproxy-Speculate": wish}
    body = {"specproxy": {"speculate": wish}}
    for facts in (facts_of(headers=header), facts_of(**body), facts_of(headers=header, **body)):
        verdict = policies.decide(facts)
        assert verdict.overridden
        assert shape(verdict.decision) == expected
        assert verdict.decision.route == "rest"


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (False, ((), False, 0, 0, False)),
        ({"drafters": ["draft_model", "ngram"]}, (("draft_model", "ngram"), False, 2, 6, True)),
        ({"k": 5}, (("ngram", "draft_model"), True, 5, 5, False)),
        ({"k": {"max": 4}}, (("ngram", "draft_model"), True, 2, 4, True)),
        ({"k": {"min": 3}, "drafters": "ngram"}, (("ngram",), False, 3, 6, True)),
        ({"k": "auto", "drafters": "ngram"}, (("ngram",), False, 2, 6, True)),
        ({"k": False}, ((), False, 0, 0, False)),
        ({}, (("ngram", "draft_model"), True, 2, 6, True)),
    ],
)
def test_the_mapping_form_inherits_from_the_route(
    policies: PolicySet, facts_of: MakeFacts, wish: object, expected: tuple[Any, ...]
) -> None:
    """What it leaves out is the route's."""
    verdict = policies.decide(facts_of(model="two", specproxy={"speculate": wish}))
    assert shape(verdict.decision) == expected


def test_a_wish_for_nothing_says_why_nothing_is_drafted(policies: PolicySet, facts_of: MakeFacts) -> None:
    """The reason is the request."""
    decision = policies.decide(facts_of(headers={"x-specproxy-speculate": "off"})).decision
    assert decision.reason == "the request asked for no speculation"


@pytest.mark.parametrize("body", [{}, {"specproxy": None}, {"specproxy": {}}, {"specproxy": {"speculate": None}}])
def test_nothing_asked_is_no_override(policies: PolicySet, facts_of: MakeFacts, body: dict[str, Any]) -> None:
    """Not even where the route forbids one."""
    assert not policies.decide(facts_of(model="closed", **body)).overridden


@pytest.mark.parametrize(
    ("model", "body", "message", "param"),
    [
        ("closed", {"speculate": "off"}, "route closed does not let a request choose", "specproxy.speculate"),
        ("off", {"speculate": "ngram"}, "nothing is drafted on route off", "specproxy.speculate"),
        ("two", {"speculate": "prediction"}, '"prediction" is no drafter of route two', "specproxy.speculate"),
        ("two", {"speculate": "ngrm"}, 'did you mean "ngram"?', "specproxy.speculate"),
        ("two", {"speculate": "ngram;k=7"}, "k 7 is outside 2 to 6, the range of route two", "specproxy.speculate"),
        ("two", {"speculate": "ngram;k=1"}, "k 1 is outside 2 to 6", "specproxy.speculate"),
        ("two", {"speculate": {"k": {"min": 5, "max": 3}}}, "outside 2 to 6", "specproxy.speculate"),
        ("rest", {"speculate": "draft_model;k=9"}, "k 9 is beyond draft_model, at most 8", "specproxy.speculate"),
        ("rest", {"speculate": "ngram;k=x"}, 'expected off or NAME[;k=N], got "ngram;k=x"', "specproxy.speculate"),
        ("rest", {"speculate": "off;k=2"}, "expected off or NAME[;k=N]", "specproxy.speculate"),
        ("rest", {"speculate": 5}, "expected off or NAME[;k=N], false, or a mapping, got 5", "specproxy.speculate"),
        ("rest", {"speculate": True}, "got true", "specproxy.speculate"),
        ("rest", {"speculate": {"k": 99}}, "a whole number from 0 to 63", "specproxy.speculate.k"),
        ("rest", {"speculate": {"kk": 1}}, 'did you mean "k"?', "specproxy.speculate.kk"),
        ("rest", {"speculate": {"drafters": []}}, "expected text or a list", "specproxy.speculate.drafters"),
        ("rest", {"speculate": {"tree": {"width": 2}}}, "the tree is the route's", "specproxy.speculate.tree"),
        ("rest", {"speculat": "off"}, 'did you mean "speculate"?', "specproxy.speculat"),
        ("rest", {"shadw": False}, 'did you mean "shadow"?', "specproxy.shadw"),
        ("rest", "off", "expected a mapping with speculate or shadow", "specproxy"),
    ],
)
def test_what_cannot_be_granted_is_refused(
    policies: PolicySet, facts_of: MakeFacts, model: str, body: object, message: str, param: str
) -> None:
    """A 400 that says what the route has; a wish is never bent."""
    with pytest.raises(InvalidRequest) as caught:
        policies.decide(facts_of(model=model, specproxy=body))
    info = caught.value.info()
    assert message in info.message
    assert (info.status, info.param, info.code) == (400, param, "speculation_override_refused")


@pytest.mark.parametrize(
    ("headers", "body", "out"),
    [
        ({}, {}, False),
        ({}, {"specproxy": {"shadow": False}}, True),
        ({}, {"specproxy": {"shadow": False, "speculate": "off"}}, True),
        ({}, {"specproxy": {"shadow": True}}, False),
        ({}, {"specproxy": {"shadow": None}}, False),
        ({"X-No-Shadow": ""}, {"specproxy": {"shadow": True}}, True),
        ({"x-other": "1"}, {}, False),
    ],
)
def test_a_request_may_stay_out_of_shadow(
    policies: PolicySet, facts_of: MakeFacts, headers: dict[str, str], body: dict[str, Any], out: bool
) -> None:
    """By header or body; that alone is no override, and is allowed where the route allows none."""
    facts = facts_of(headers=headers, model="rest" if "speculate" in str(body) else "closed", **body)
    assert policies.decide(facts).overridden is ("speculate" in str(body))
    assert stays_out_of_shadow(facts, "X-No-Shadow") is out


@pytest.mark.parametrize("shadow", ["off", 0, 1, {}, []])
def test_a_wish_about_shadow_is_true_or_false(policies: PolicySet, facts_of: MakeFacts, shadow: object) -> None:
    """Anything else is a 400 that names it, on every route."""
    with pytest.raises(InvalidRequest, match="expected true or false, got") as caught:
        policies.decide(facts_of(model="closed", specproxy={"shadow": shadow}))
    assert caught.value.info().param == "specproxy.shadow"


def test_header_and_body_must_not_contradict(policies: PolicySet, facts_of: MakeFacts) -> None:
    """Neither silently wins."""
    with pytest.raises(InvalidRequest, match="ask for different things"):
        policies.decide(facts_of(headers={"x-specproxy-speculate": "off"}, specproxy={"speculate": "ngram"}))


@pytest.mark.parametrize("text", ["", ";k=1", "a b", "ngram;k=", "ngram;k=-1", "ngram,draft_model", "ngram;q=1", "é"])
def test_a_malformed_header_is_refused(policies: PolicySet, facts_of: MakeFacts, text: str) -> None:
    """By the header's name."""
    with pytest.raises(InvalidRequest) as caught:
        policies.decide(facts_of(headers={"x-specproxy-speculate": text}))
    assert caught.value.param == "x-specproxy-speculate"
