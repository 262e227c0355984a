"""The strict reader against the standard library's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specproxy.tools.json_reader import MAX_DEPTH, Fault, read_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def read(text: str) -> int | None:
    """How many characters of ``text`` the object takes, ``None`` if it does not end. Raises Fault."""
    reader = read_object()
    next(reader)
    for i, char in enumerate(text[1:], start=2):
        try:
            reader.send(char)
        except StopIteration:
            return i
    return None


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.sampled_from([None, 1]), st.booleans(), st.text())
def test_an_object_ends_at_its_own_brace(value: dict[str, Any], indent: int | None, ascii_: bool, behind: str) -> None:
    """Whatever the standard library writes is read to its end, and nothing of what follows."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
    assert read(text + behind) == len(text)


@given(st.text(alphabet='{}[]",:\\ \n0123.eE+-truefalsn', max_size=24))
def test_what_is_read_is_what_json_is(text: str) -> None:
    """A text is read as a whole object exactly where the standard library takes it."""
    text = "{" + text
    try:
        end = read(text)
    except Fault:
        end = -1
    try:
        _, expected = json.JSONDecoder(parse_constant=refuse).raw_decode(text)
    except ValueError:
        assert end in (-1, None)
    else:
        assert end == expected


def refuse(name: str) -> None:
    """NaN and the infinities are no JSON."""
    raise ValueError(name)


@pytest.mark.parametrize(
    "text", ['{"a": 01}', '{"a": .5}', '{"a": NaN}', '{"a": 1,}', "{'a': 1}", '{"a" 1}', '{"\x01": 1}', r'{"\x": 1}']
)
def test_near_misses_are_faults(text: str) -> None:
    """What lenient readers let pass is a fault here."""
    with pytest.raises(Fault):
        read(text)


def test_depth_is_bounded() -> None:
    """Objects inside one another are read up to a bound."""
    assert read('{"a": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}") is not None
    with pytest.raises(Fault, match="inside one another"):
        read('{"a": ' + "[" * MAX_DEPTH)
