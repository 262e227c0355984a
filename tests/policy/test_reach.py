"""Routes that cannot be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.policy.conditions import MatchCompiler
from specproxy.policy.facts import Facts
from specproxy.policy.predicates import RegexGuard
from specproxy.policy.reach import unreachable

if TYPE_CHECKING:
    from tests.policy.conftest import FindAll


def reasons(find_all: FindAll, *matches: str) -> list[str]:
    """Warnings of routes a, b, c … with these matches; ``-`` is none."""
    routes = [f"  - {{name: {n}{'' if m == '-' else f', match: {m}'}}}" for n, m in zip("abcd", matches, strict=False)]
    return find_all("routes:\n" + "\n".join(routes) + "\n  - {name: rest}\n").warnings


@pytest.mark.parametrize(
    ("matches", "reason"),
    [
        (["-"], "route rest can never be reached: route a before it takes every request"),
        (["{n: 1}", "{n: 1}"], "route b can never be reached: route a before it takes these requests"),
        (["{n: {ge: 1}}", "{n: 2, stream: true}"], "route b"),
        (["{tools: present}", "{tools: [x, y]}"], "route b"),
        (["{model: [x, y, z]}", "{model: [x, y]}"], "route b"),
        (["{header: {X-A: [p, q]}}", "{header: {x-a: p}}"], "route b"),
        (["{any: [{n: 1}, {stream: true}]}", "{stream: true, load: 3}"], "route b"),
        (
            ["{n: 1}", "{stream: true}", "{any: [{n: 1}, {stream: true}]}"],
            "route a before it takes these requests; route b",
        ),
        (["{not: {n: 1}}", "{not: {n: 1}, stream: true}"], "route b"),
        (["{all: [{n: 1}, {stream: true}]}", "{stream: true, n: 1}"], "route b"),
        (["{prompt: /x/}", "{prompt: /x/, n: 1}"], "route b"),
        (["{temperature: {gt: 1, lt: 0.5}}"], "route a can never be reached: temperature: nothing is > 1 and < 0.5"),
        (["{all: [{tools: present}, {tools: absent}]}"], "nothing is both present and absent"),
    ],
)
def test_routes_out_of_reach_are_warned_of_with_the_reason(find_all: FindAll, matches: list[str], reason: str) -> None:
    """Taken by an earlier route, by several together, or impossible in itself."""
    warnings = reasons(find_all, *matches)
    assert len(warnings) == 1
    assert reason in warnings[0]


@pytest.mark.parametrize(
    "matches",
    [
        ["{n: 2}", "{n: {ge: 1}}"],
        ["{tools: [x]}", "{tools: present}"],
        ["{n: 1, stream: true}", "{n: 1}"],
        ["{n: 1}", "{any: [{n: 1}, {stream: true}]}"],
        ["{not: {n: 1}}", "{not: {n: 2}}"],
        ["{response_format: present}", "{response_format: text}"],
        ["{header: {x-a: present}}", "{header: {x-b: present}}"],
        ["{metadata: {a: present}}", "{header: {a: present}}"],
        ["{prompt: /x/}", "{prompt: /xy/}"],
    ],
)
def test_routes_in_reach_are_not(find_all: FindAll, matches: list[str]) -> None:
    """The check speaks up only where it is sure."""
    assert reasons(find_all, *matches) == []


_leaf = st.one_of(
    st.fixed_dictionaries({"n": st.integers(1, 3) | st.sampled_from([{"ge": 2}, {"lt": 3}, "present", "absent"])}),
    st.fixed_dictionaries({"stream": st.sampled_from([True, False, "present"])}),
    st.fixed_dictionaries({"model": st.sampled_from(["x", "y", ["x", "y"], "present", "absent"])}),
    st.fixed_dictionaries({"response_format": st.sampled_from(["text", "json", "present", "absent"])}),
)


def _nest(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    parts = st.lists(inner, min_size=1, max_size=2)
    return (
        st.fixed_dictionaries({"any": parts})
        | st.fixed_dictionaries({"all": parts})
        | st.fixed_dictionaries({"not": inner})
        | st.tuples(inner, _leaf).map(lambda pair: pair[0] | pair[1])
    )


_match = st.recursive(_leaf, _nest, max_leaves=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(_match, min_size=1, max_size=3))
def test_no_request_reaches_a_route_that_is_called_unreachable(matches: list[dict[str, Any]]) -> None:
    """Tried with every combination of the values that the matches speak of."""
    compiler = MatchCompiler(RegexGuard(), lambda path, message: pytest.fail(message))
    conditions = [(str(index), compiler.compile(match)) for index, match in enumerate(matches)]
    claimed = {index for index, _ in unreachable(conditions)}
    for facts in _every_request():
        taken = next((i for i, (_, condition) in enumerate(conditions) if condition.evaluate(facts)[0]), None)
        assert taken not in claimed


def _every_request() -> list[Facts]:
    return [
        Facts(path="/", n=n, stream=stream, model=model, response_format=form)
        for n in (None, 1, 2, 3, 4)
        for stream in (None, False, True)
        for model in ("", "x", "y", "z")
        for form in (None, "json", "other")
    ]
