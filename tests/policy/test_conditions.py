"""Match conditions: every key, every form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from specproxy.config.yaml_reader import Problem, parse_yaml
from specproxy.policy.conditions import AnyOf, Condition, MatchCompiler, failures
from specproxy.policy.facts import Facts
from specproxy.policy.predicates import FlagPredicate, NumberPredicate, RegexGuard, TextPredicate
from specproxy.policy.schema import Match


def compiled(text: str) -> Condition:
    """The condition of a match written in YAML."""
    found: list[Problem] = []
    document = parse_yaml(text, "f", found)
    assert document is not None
    assert isinstance(document.value, dict)

    def report(path: object, message: str) -> None:
        raise AssertionError(f"{path}: {message}")

    return MatchCompiler(RegexGuard(), report).compile(document.value)


def holds(text: str, facts: Facts) -> bool:
    """Whether a match written in YAML holds."""
    return compiled(text).evaluate(facts)[0]


FULL = Facts(
    path="/v1/chat/completions",
    model="house",
    headers={"x-team": "support"},
    api_key="alice",
    response_format="json_schema",
    tools=("get_weather", "search"),
    tool_choice="auto",
    temperature=0.7,
    top_p=0.9,
    max_tokens=100,
    n=2,
    prompt_tokens=500,
    turns=3,
    stream=True,
    logprobs=0,
    prediction="def f",
    prompt="Rename `a` in ```x```",
    metadata={"category": "edit"},
    load=4,
)
BARE = Facts(path="/v1/completions")


@pytest.mark.parametrize(
    ("text", "full", "bare"),
    [
        ("path: /v1/chat/completions", True, False),
        ("path: '/chat/'", True, False),
        ("path: present", True, True),
        ("model: house", True, False),
        ("model: [a, house]", True, False),
        ("model: House", False, False),
        ("model: absent", False, True),
        ("header: {X-Team: support}", True, False),
        ("header: {x-team: absent}", False, True),
        ("header: {x-team: present, x-none: absent}", True, False),
        ("api_key: alice", True, False),
        ("api_key: absent", False, True),
        ("response_format: [json_object, json_schema]", True, False),
        ("response_format: present", True, False),
        ("response_format: absent", False, True),
        ("response_format: text", False, True),
        ("tools: present", True, False),
        ("tools: absent", False, True),
        ("tools: search", True, False),
        ("tools: [a, b]", False, False),
        ("tools: /^get_/", True, False),
        ("tool_choice: auto", True, False),
        ("temperature: 0.7", True, False),
        ("temperature: {ge: 0.7, lt: 0.8}", True, False),
        ("temperature: {gt: 0.7}", False, False),
        ("temperature: {le: 0.7, gt: 0.69}", True, False),
        ("temperature: present", True, False),
        ("temperature: absent", False, True),
        ("top_p: {lt: 1}", True, False),
        ("max_tokens: {ge: 100}", True, False),
        ("n: 1", False, True),
        ("n: {gt: 1}", True, False),
        ("n: absent", False, True),
        ("prompt_tokens: {gt: 499}", True, False),
        ("prompt_tokens: absent", False, True),
        ("turns: 3", True, False),
        ("turns: {le: 1}", False, True),
        ("stream: true", True, False),
        ("stream: false", False, True),
        ("stream: present", True, False),
        ("logprobs: true", True, False),
        ("logprobs: false", False, True),
        ("logprobs: {ge: 1}", False, False),
        ("logprobs: absent", False, True),
        ("prediction: present", True, False),
        ("prediction: /def /", True, False),
        ("prompt: /```/", True, False),
        ("prompt: /(?i)RENAME/", True, False),
        ("prompt: absent", False, True),
        ("metadata: {category: [edit, quote]}", True, False),
        ("metadata: {category: absent}", False, True),
        ("metadata: {other: absent}", True, True),
        ("metadata: present", True, False),
        ("metadata: absent", False, True),
        ("load: {ge: 4}", True, False),
        ("load: 0", False, True),
        ("{model: house, n: 1}", False, False),
        ("any: [{model: other}, {n: 2}]", True, False),
        ("any: [{model: other}, {n: 3}]", False, False),
        ("all: [{model: house}, {n: 2}]", True, False),
        ("all: [{model: house}, {n: 3}]", False, False),
        ("not: {model: house}", False, True),
        ("not: {model: house, n: 1}", True, True),
        ("any: [{not: {any: [{n: 2}, {n: 3}]}}, {all: [{stream: true}, {load: 4}]}]", True, True),
    ],
)
def test_every_key_in_every_form(text: str, full: bool, bare: bool) -> None:
    """A full request and a bare one, against the table of the language."""
    assert (holds(text, FULL), holds(text, BARE)) == (full, bare)


def test_no_key_of_the_language_is_left_out() -> None:
    """Every key of the schema compiles; a key without a reader would fail on the first request."""
    forms: dict[str, Any] = {"any": [{"n": 1}], "all": [{"n": 1}], "not": {"n": 1}, "header": {"a": "present"}}
    kind = inspect.type_info(Match)
    assert isinstance(kind, inspect.StructType)
    compiler = MatchCompiler(RegexGuard(), lambda path, message: pytest.fail(message))
    for field in kind.fields:
        compiler.compile({field.encode_name: forms.get(field.encode_name, "present")}).evaluate(FULL)


def test_the_rule_is_the_condition_that_decided() -> None:
    """The alternative that held, or the first condition that failed."""
    condition = compiled("{any: [{model: other}, {tools: present}]}")
    assert condition.evaluate(FULL)[1].where == "any[1].tools"
    condition = compiled("{model: house, temperature: {ge: 1}, n: 9}")
    held, decider = condition.evaluate(FULL)
    assert (held, decider.where, decider.describe(FULL)) == (False, "temperature", ("0.7", ">= 1"))
    assert compiled("{model: house, n: 2}").evaluate(FULL)[1].where == ""


def test_failures_list_one_condition_per_alternative() -> None:
    """That is what a person needs to see why nothing held."""
    condition = compiled("{any: [{model: other, n: 9}, {not: {n: 2}}, {temperature: {ge: 1}}]}")
    assert isinstance(condition, AnyOf)
    assert [item.where for item in failures(condition, FULL)] == ["any[0].model", "any[1].not", "any[2].temperature"]
    assert list(failures(compiled("model: house"), FULL)) == []


def test_a_search_beyond_its_time_is_no_match_and_counted() -> None:
    """A pattern that backtracks without end must not stop the server."""
    guard = RegexGuard(timeout_s=0.005)
    search = guard.compile(r"(?:a|aa|a.)+(?:b|bb)+c$")
    assert search("aabbc")
    assert guard.num_timeouts == 0
    assert not search("a" * 5000 + "b" * 5000)
    assert guard.num_timeouts == 1


def test_a_broken_pattern_is_reported_where_it_stands() -> None:
    """With the pattern and what is wrong with it."""
    reports: list[tuple[object, str]] = []
    compiler = MatchCompiler(RegexGuard(), lambda path, message: reports.append((path, message)))
    compiler.compile({"any": [{"prompt": ["x", "/(/"]}]})
    assert reports[0][0] == ("any", 0, "prompt")
    assert reports[0][1].startswith('expected a regular expression between slashes, got ["x", "/(/"]:')


_numbers = st.one_of(
    st.floats(-2, 2).map(NumberPredicate.of),
    st.dictionaries(st.sampled_from(["ge", "gt", "le", "lt"]), st.integers(-2, 2), min_size=1).map(NumberPredicate.of),
    st.sampled_from(["present", "absent"]).map(NumberPredicate.of),
)
_words = st.sampled_from(["a", "b", "text", "present", "absent", "/a/"])


@settings(max_examples=400, deadline=None)
@given(_numbers, _numbers, st.none() | st.floats(-3, 3) | st.integers(-3, 3))
def test_a_narrower_number_condition_implies_the_wider(
    one: NumberPredicate, other: NumberPredicate, seen: object
) -> None:
    """What ``within`` claims holds for every value."""
    if one.within(other) and one(seen):
        assert other(seen)
    if one.impossible:
        assert not one(seen)


@settings(max_examples=400, deadline=None)
@given(st.lists(_words, min_size=1, max_size=3), st.lists(_words, min_size=1, max_size=3), st.booleans(), st.data())
def test_a_narrower_text_condition_implies_the_wider(
    one: list[str], other: list[str], default: bool, data: st.DataObject
) -> None:
    """What ``within`` claims holds for every value, absent ones with a default included."""
    compare: Callable[[list[str]], TextPredicate] = lambda words: TextPredicate.of(  # noqa: E731
        words, RegexGuard(), "text" if default else None
    )
    left, right = compare(one), compare(other)
    seen = data.draw(st.none() | st.sampled_from(["a", "b", "ab", "text", ""]) | st.just(("a", "b")))
    if left.within(right) and left(seen):
        assert right(seen)


def test_flags_within_flags() -> None:
    """Over the three values of a flag."""
    flag = FlagPredicate.of
    assert flag(True).within(flag("present"))
    assert flag("absent").within(flag(False))
    assert not flag(False).within(flag("absent"))
    assert not flag("present").within(flag(True))
