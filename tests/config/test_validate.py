"""Checking plain values against Structs."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct

from specproxy.config.schema import StartConfig
from specproxy.config.validate import check
from specproxy.config.yaml_reader import Document, Problem, parse_yaml


class Inner(Struct, forbid_unknown_fields=True, kw_only=True):
    """A mapping inside."""

    size: Annotated[int, Meta(ge=1, le=8)] = 1
    mode: Literal["fast", "slow"] = "fast"


class Outer(Struct, forbid_unknown_fields=True, kw_only=True):
    """Every kind of type that settings use."""

    name: str
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    flag: bool = False
    inner: Literal["off"] | Annotated[bool, Meta(extra_json_schema={"const": False})] | Inner = "off"
    names: str | Annotated[list[str], Meta(min_length=1)] = "x"
    limit: Annotated[int, Meta(ge=0)] | None = None
    table: dict[str, Inner] = {}


def faults(text: str) -> list[str]:
    """The problems of a document as an Outer, as lines."""
    found: list[Problem] = []
    document = parse_yaml(text, "f", found)
    assert document is not None
    check(document, Outer, found)
    return [str(problem) for problem in found]


def test_what_fits_has_no_problems() -> None:
    """Every alternative of every type passes."""
    assert faults("name: a\n") == []
    assert faults("name: a\ninner: off\nnames: [a, b]\nlimit: null\nshare: 0.1\n") == []
    assert faults("name: a\ninner: false\ntable: {x: {size: 8}}\nlimit: 3\n") == []


def test_all_problems_are_found_at_once() -> None:
    """One pass tells every fault, each with its line."""
    text = "nam: a\nshare: 2\nflag: 1\ninner: {size: 9, mode: fats}\n"
    assert faults(text) == [
        'f:1: nam: unknown key "nam"; did you mean "name"?',
        "f:2: share: expected a number above 0 and below 1, got 2",
        "f:3: flag: expected true or false, got 1",
        "f:4: inner.size: expected a whole number from 1 to 8, got 9",
        'f:4: inner.mode: expected "fast" or "slow", got "fats"; did you mean "fast"?',
        'f:1: "name" is missing; expected text',
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner: true", 'expected "off", false or a mapping with size, mode, got true'),
        ("inner: of", 'expected "off", false or a mapping with size, mode, got "of"; did you mean "off"?'),
        ("inner: {sizes: 1}", 'unknown key "sizes"; did you mean "size"?'),
        ("inner: {colour: red}", 'unknown key "colour"; known: size, mode'),
        ("names: []", "expected text or a list (each text), got []"),
        ("names: [a, {b: 1}]", 'expected text, got {"b": 1}'),
        ("names: 5", "expected text or a list (each text), got 5; write it in quotes"),
        ("limit: -1", "expected a whole number of at least 0 or null, got -1"),
        ("limit: 1.5", "expected a whole number of at least 0 or null, got 1.5"),
        ("limit: true", "expected a whole number of at least 0 or null, got true"),
        ("share: .nan", "expected a number above 0 and below 1, got NaN"),
        ("table: [1]", "expected a mapping of names to a mapping with size, mode, got [1]"),
        ("table: {x: 1}", "expected a mapping with size, mode, got 1"),
    ],
)
def test_a_message_says_what_was_expected_and_what_came(text: str, message: str) -> None:
    """The expectation is in words, the value as it was written."""
    assert faults(f"name: a\n{text}\n")[0].endswith(message)


def test_long_values_are_cut() -> None:
    """A message stays a line."""
    assert len(faults(f"name: a\nflag: {'x' * 500}\n")[0]) < 160


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70000) | st.floats() | st.sampled_from(["auto", "off", "x", "info"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "server", "port", "drafters", "type", "x", "path", "log", "level", "url"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(_values)
def test_the_check_agrees_with_msgspec(value: object) -> None:
    """What the check lets through converts, so that no fault comes without its line."""
    found: list[Problem] = []
    check(Document("f", value), StartConfig, found)
    if not found:
        msgspec.convert(value, StartConfig)
