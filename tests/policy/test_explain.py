"""policy explain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from specproxy.errors import InvalidRequest
from specproxy.policy.explain import Explanation, explain
from specproxy.policy.policy import PolicySet

if TYPE_CHECKING:
    from tests.policy.conftest import LoadSet, MakeFacts

DEFAULTS = """
defaults:
  speculate:
    k: {min: 1, max: 4}
"""
ROUTES = """
routes:
  - name: hot
    match: {temperature: {ge: 0.9}, n: 1}
    speculate: off
  - name: json
    match:
      any: [{response_format: present}, {metadata: {kind: json}}]
    speculate:
      k: {max: 8}
    override: true
  - {name: rest}
"""


@pytest.fixture
def policies(load_set: LoadSet) -> PolicySet:
    """Three routes over defaults."""
    return load_set(DEFAULTS, ROUTES)


def origins(explanation: Explanation) -> dict[str, tuple[str, str]]:
    """Value and origin by setting, file paths cut."""
    return {item.field: (item.value, item.origin.rsplit("/", 1)[-1]) for item in explanation.fields}


def test_routes_show_what_kept_them_from_matching(policies: PolicySet, facts_of: MakeFacts) -> None:
    """The first failed condition, or one per alternative, with value seen and value wanted; later routes unasked."""
    explanation = explain(policies, facts_of(temperature=0.2, metadata={"kind": "json"}))
    hot, json, rest = explanation.routes
    assert (hot.outcome, json.outcome, rest.outcome) == ("no", "yes", "not asked")
    assert [(c.condition, c.seen, c.wanted) for c in hot.conditions] == [("temperature", "0.2", ">= 0.9")]
    assert [c.condition for c in json.conditions] == ["any[1].metadata.kind"]
    assert (explanation.route, explanation.rule) == ("json", "any[1].metadata.kind")
    other = explain(policies, facts_of("x" * 500))
    assert [(c.condition, c.seen) for c in other.routes[1].conditions] == [
        ("any[0].response_format", "absent"),
        ("any[1].metadata.kind", "absent"),
    ]
    assert other.routes[2].outcome == "takes every request"


def test_every_field_has_its_origin(policies: PolicySet, facts_of: MakeFacts) -> None:
    """Route, defaults or built in, with file and line; both ends of a range where they differ."""
    found = origins(explain(policies, facts_of(response_format={"type": "json_object"})))
    assert found["override"] == ("true", "10.yaml:11)")
    assert found["exactness"] == ("bitwise", "built in")
    assert found["speculate.k"][0] == "1 to 8"
    explanation = explain(policies, facts_of())
    assert origins(explanation)["speculate.k"] == ("1 to 4", "00.yaml:4)")
    wide = next(
        f
        for f in explain(policies, facts_of(response_format={"type": "json_object"})).fields
        if f.field == "speculate.k"
    )
    assert wide.origin.startswith("min: defaults (")
    assert "max: route (" in wide.origin


def test_an_override_is_the_requests_doing(policies: PolicySet, facts_of: MakeFacts) -> None:
    """Its fields come from the request."""
    asked = facts_of(headers={"x-specproxy-speculate": "ngram;k=2"}, metadata={"kind": "json"})
    explanation = explain(policies, asked)
    assert explanation.decision is not None
    assert origins(explanation)["speculate.k"] == ("2", "request")
    assert origins(explanation)["speculate.drafters"] == ("ngram", "request")


def test_what_would_change_it(policies: PolicySet, facts_of: MakeFacts) -> None:
    """Conditions towards earlier routes, the next route, and what an override could do."""
    changes = "\n".join(explain(policies, facts_of(temperature=0.2, metadata={"kind": "json"})).changes)
    assert "temperature >= 0.9 (it is 0.2): towards route hot" in changes
    assert "would go to route rest" in changes
    assert "header x-specproxy-speculate: off, auto or one of prediction, ngram, draft_model" in changes
    off = "\n".join(explain(policies, facts_of(temperature=1)).changes)
    assert "override: true on the route would let a request choose; it is built in" in off
    assert "a k above 0: it is route (" in off
    rest = "\n".join(explain(policies, facts_of()).changes)
    assert "metadata.kind json (it is absent): towards route json" in rest


def test_a_refusal_is_explained_too(policies: PolicySet, facts_of: MakeFacts) -> None:
    """The same error that the client would get."""
    facts = facts_of(max_tokens=99999)
    explanation = explain(policies, facts)
    with pytest.raises(InvalidRequest) as caught:
        policies.decide(facts)
    assert explanation.decision is None
    assert explanation.refused == caught.value.info()
    assert explanation.route == "rest"


def test_explain_and_decide_agree(policies: PolicySet, facts_of: MakeFacts) -> None:
    """One evaluator: the decision explained is the decision made."""
    for body in ({}, {"temperature": 1}, {"temperature": 1, "n": 2}, {"response_format": {"type": "json_object"}}):
        facts = facts_of(**body)
        assert explain(policies, facts).decision == policies.decide(facts).decision


def test_facts_are_shown_without_secrets_and_cut(policies: PolicySet, facts_of: MakeFacts) -> None:
    """An explanation may be pasted into a ticket."""
    explanation = explain(policies, facts_of("x" * 500, headers={"Authorization": "Bearer abc", "X-Team": "t"}))
    assert explanation.facts["headers"] == {"authorization": "(hidden)", "x-team": "t"}
    assert explanation.facts["prompt"].endswith("(500 characters)")
    assert "temperature" not in explanation.facts
