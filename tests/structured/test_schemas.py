"""Schemas: what is refused and where it stands, what an answer may look like, and its verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest

from specproxy.errors import InvalidRequest
from specproxy.structured.grammars import Grammars
from specproxy.structured.schemas import ANY_OBJECT, MAX_SCHEMA_BYTES, compile_schema
from specproxy.text.tokenizer import Tokenizer
from tests.structured.test_grammars import start

CASES: list[tuple[dict[str, Any], str]] = [
    ({"not": {"type": "string"}}, "s.not"),
    ({"properties": {"a": {"items": {"uniqueItems": True, "type": "array"}}}}, "s.properties.a.items.uniqueItems"),
    ({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "(?=x)y"}]}, "s.anyOf.1.pattern"),
    ({"items": {"type": "string", "format": "nonsense"}}, "s.items.format"),
    ({"properties": {"x": {"$ref": "#/$defs/b"}}, "$defs": {"a": {}, "b": {"contains": {}}}}, "s.$defs.b.contains"),
    ({"properties": {"v": {"oneOf": [{"type": "object"}, {"properties": {"a": {}}}]}}}, "s.properties.v.oneOf"),
]


@pytest.mark.parametrize(("schema", "path"), CASES, ids=[path for _, path in CASES])
def test_what_no_grammar_says_is_named_by_its_path(schema: dict[str, Any], path: str) -> None:
    """Strictly, it is refused where it stands; else it is left to the model, but for a pattern beyond all grammars."""
    with pytest.raises(InvalidRequest, match="is not supported") as caught:
        compile_schema(schema, "s", strict=True)
    assert (caught.value.status, caught.value.param) == (400, path)
    if "pattern" not in path:
        assert compile_schema(schema, "s", strict=False).grammar


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"properties": {"a": {"type": "strin"}}}, "s.properties.a.type"),
        ({"minLength": "x"}, "s.minLength"),
        ({"$ref": "#/$defs/nobody"}, "s"),
        ({"$ref": "http://127.0.0.1:1/elsewhere.json"}, "s"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "s.minimum"),
        ({"description": "x" * MAX_SCHEMA_BYTES}, "s"),
    ],
)
def test_what_is_no_schema_is_refused_in_any_case(schema: dict[str, Any], path: str, strict: bool) -> None:
    """Faults, references to elsewhere (which are not fetched), what nothing satisfies, and what is too large."""
    with pytest.raises(InvalidRequest) as caught:
        compile_schema(schema, "s", strict=strict)
    assert caught.value.param is not None
    assert caught.value.param == path or (path == "s.minimum" and caught.value.param in ("s.type", "s.maximum"))


def test_nesting_without_end_is_refused() -> None:
    """A schema that is a thousand levels deep is a 400."""
    schema: dict[str, Any] = {}
    for _ in range(1000):
        schema = {"items": schema}
    with pytest.raises(InvalidRequest):
        compile_schema(schema, "s", strict=True)


def test_an_unknown_dialect_is_read_as_the_newest() -> None:
    """Nothing is fetched to find out what $schema means."""
    made = compile_schema({"$schema": "http://nowhere.invalid/x", "type": "integer"}, "s", strict=True)
    assert made.judge("3", complete=True) == "valid"


@pytest.mark.parametrize(
    ("text", "complete", "verdict"),
    [('{"a": 1}', True, "valid"), ("[]", True, "invalid"), ('{"a"', True, "invalid"), ('{"a"', False, "truncated")],
)
def test_verdicts(text: str, complete: bool, verdict: str) -> None:
    """What has the schema, what has not, and what did not come to its end."""
    assert compile_schema(ANY_OBJECT, "s", strict=True).judge(text, complete=complete) == verdict


def test_blanks_come_to_an_end(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Between the parts of JSON stands a space or an indented new line, and not blanks for ever."""
    for text, follows in (("{ ", False), ("{", True), ("{\n", True), ("{\n" + " " * 32, False)):
        matcher = start(grammars, ANY_OBJECT)
        matcher.advance(tokenizer.encode(text, special=False))
        assert matcher.allowed(()) is not None
        assert matcher.allows((), tokenizer.encode(" ", special=False)[0]) is follows


def test_pretty_and_compact_answers_are_both_possible(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Any usual way to write JSON passes."""
    value = {"name": "Bo", "age": 7, "tags": ["red", "blue"]}
    schema = {"type": "object", "properties": {key: {} for key in value}, "required": list(value)}
    for options in ({}, {"indent": 2}, {"indent": 4}, {"separators": (",", ":")}, {"indent": "\t"}):
        matcher = start(grammars, schema)
        for token in tokenizer.encode(json.dumps(value, **options), special=False):  # type: ignore[arg-type]
            assert matcher.allows((), token)
            matcher.advance([token])
        assert matcher.forced(1) == [2]
