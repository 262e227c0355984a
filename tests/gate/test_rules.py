"""What a candidate has to show, as its route's policy says."""

from __future__ import annotations

import msgspec
import pytest

from specproxy.gate.assessment import assess
from specproxy.gate.evidence import no_evidence
from specproxy.gate.rules import rules_for
from specproxy.policy.schema import Gate, Margins, Settings


def test_every_margin_of_the_policy_is_a_rule() -> None:
    """None of them is a constant of the gate."""
    margins = Margins(ttft_p95=0.11, itl_p95=0.12, cost=0.13, structured=0.14, tools=0.15, stability=0.16, ties=0.17)
    rules = rules_for(Settings(exactness="numeric", gate=Gate(margins=margins)))
    assert rules.tail_margins == {"ttft_p95": 0.11, "itl_p95": 0.12}
    assert rules.rate_margins == {"structured": 0.14, "tools": 0.15, "stability": 0.16, "ties": 0.17}
    assert rules.cost_margin == 0.13


def test_margins_that_the_policy_leaves_out() -> None:
    """Five percent of a time, two points of a rate."""
    rules = rules_for(Settings())
    assert set(rules.tail_margins.values()) | {rules.cost_margin} == {0.05}
    assert rules.rate_margins == {"structured": 0.02, "tools": 0.02, "stability": 0.02, "ties": 0.02}


@pytest.mark.parametrize("exactness", ["bitwise", "numeric"])
def test_near_ties_are_watched_everywhere_and_proven_where_answers_may_differ(exactness: str) -> None:
    """Too many of them reject a candidate on any route; that they are few enough is asked for on numeric ones alone."""
    rules = rules_for(Settings(exactness=exactness))
    assert "ties" in rules.rate_margins
    assert ("ties" in rules.must_prove) == (exactness == "numeric")
    worse = no_evidence(rules)
    for arm, share in ((True, 0.5), (False, 0.2)):
        for number in range(2000):
            worse.live.rates["ties"].add(candidate=arm, good=number % 10 >= 10 * share)
    assert "ties" in {finding.metric for finding in assess(worse, rules).failed()}


@pytest.mark.parametrize(("key", "value"), [("ties", 1.5), ("structured", -0.1), ("cost", -0.1)])
def test_a_margin_that_can_mean_nothing_is_refused(key: str, value: float) -> None:
    """Rates are shares; no margin is negative."""
    with pytest.raises(msgspec.ValidationError, match=key):
        msgspec.convert({key: value}, Margins)
