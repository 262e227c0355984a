"""JSON Schemas as grammars: what a schema becomes, what is wrong with it and where, and whether an answer has it.

Answers are checked by jsonschema-rs, which shares nothing with the grammar that made them. Neither fetches anything: a
reference to another document is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jsonschema_rs
from llguidance import LLMatcher

from specproxy.errors import InvalidRequest
from specproxy.structured.grammars import grammar_fault

Verdict = Literal["valid", "invalid", "truncated"]

MAX_SCHEMA_BYTES = 64 * 1024
"""Of a schema as JSON. The largest of a JSONSchemaBench sample has 4.4 kB; one of 2000 keys with a pattern each, some
110 kB, takes 0.4 s to compile (one thread of an AMD EPYC)."""

MAX_PLACES = 400
"""Subschemas that are looked at for the place of a fault, 0.1 to 1 ms each."""

WHITESPACE = r"( |\n[ \t]{0,32})"
"""Between the parts of JSON: nothing, a space, or a line break with indentation. Models that are held to a schema,
small ones most of all, fall into blanks without end where any number is allowed."""

ANY_OBJECT: dict[str, Any] = {"type": "object"}

_DRAFTS = {
    "http://json-schema.org/draft-04/schema": jsonschema_rs.Draft4Validator,
    "http://json-schema.org/draft-06/schema": jsonschema_rs.Draft6Validator,
    "http://json-schema.org/draft-07/schema": jsonschema_rs.Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": jsonschema_rs.Draft201909Validator,
}
"""By ``$schema``; all others, and those without one, are read as draft 2020-12."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames")


@dataclass(frozen=True)
class AnswerSchema:
    """What an answer has to be. ``grammar``: what makes it so, as far as a grammar can say it; ``strict``: it says it
    all, or the schema would have been refused."""

    grammar: str
    strict: bool
    validator: Any

    def judge(self, text: str, *, complete: bool) -> Verdict:
        """Whether an answer has the schema. ``complete``: it came to its own end."""
        if not complete:
            return "truncated"
        try:
            return "valid" if self.validator.is_valid(json.loads(text)) else "invalid"
        except (ValueError, RecursionError):
            return "invalid"


def compile_schema(schema: dict[str, Any], where: str, *, strict: bool) -> AnswerSchema:
    """The grammar of ``schema``, and what checks it. Not ``strict``: what no grammar can say is left to the model.

    ``where``: path of the schema in the request. Raises InvalidRequest naming the path of what is wrong, or of what is
    not supported, and the limits.
    """
    named = str(schema.get("$schema", "")).rstrip("#")
    if named not in _DRAFTS:
        schema = {key: value for key, value in schema.items() if key != "$schema"}
    text = _as_json(schema, where)
    validator = _validator(schema, where, _DRAFTS.get(named, jsonschema_rs.Draft202012Validator))
    grammar = _grammar(text, strict=strict)
    fault = grammar_fault(grammar)
    if fault:
        place, keyword = _culprit(schema, fault, strict=strict)
        path = ".".join([where, *place, *([keyword] if keyword else [])])
        hint = "; leave it out" + (", or set `strict` to false and check the answer yourself" if strict else "")
        raise InvalidRequest(f"`{path}` is not supported: {_first_line(fault)}{hint}", param=path)
    return AnswerSchema(grammar, strict, validator)


def _as_json(schema: dict[str, Any], where: str) -> str:
    try:
        text = json.dumps(schema)
    except RecursionError:
        raise InvalidRequest(f"`{where}` is nested too deeply", param=where) from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(
            f"`{where}` must have at most {MAX_SCHEMA_BYTES} bytes as JSON, got {len(text)}", param=where
        )
    return text


def _grammar(schema: str, *, strict: bool) -> str:
    return LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_pattern": WHITESPACE, "lenient": not strict, "coerce_one_of": not strict}
    )


def _validator(schema: dict[str, Any], where: str, draft: Any) -> Any:
    """Raises InvalidRequest where ``schema`` is no JSON Schema."""
    try:
        return draft(schema, offline=True)
    except jsonschema_rs.ValidationError as error:
        path = ".".join([where, *(str(part) for part in error.instance_path)])
        raise InvalidRequest(f"`{path}` is no valid JSON Schema: {_first_line(error.message)}", param=path) from None
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        raise InvalidRequest(f"`{where}` is no valid JSON Schema: {_first_line(str(error))}", param=where) from None


def _culprit(schema: dict[str, Any], fault: str, *, strict: bool) -> tuple[list[str], str]:
    """Path of the innermost subschema that has ``fault`` by itself, and its keyword without which it has not.

    Beside it stand the definitions, of which only those count that it refers to.
    """
    shared = {key: schema[key] for key in ("$defs", "definitions", "$id") if key in schema}
    left = MAX_PLACES

    def same(part: dict[str, Any]) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and _what(grammar_fault(_grammar(json.dumps(shared | part), strict=strict))) == _what(fault)

    path: list[str] = []
    at = schema
    while True:
        while (found := next(((way, part) for way, part in _parts(at) if same(part)), None)) is not None:
            path += found[0]
            at = found[1]
        named_first = sorted(at, key=lambda key: key not in fault)
        keyword = next((key for key in named_first if not same({k: at[k] for k in at if k != key})), "")
        target = _local(schema, at["$ref"]) if keyword == "$ref" else None
        if target is None or left < 0:
            return path, keyword
        path, at = target


def _what(fault: str) -> str:
    """A fault without where it was met."""
    return fault.partition(" while processing ")[0]


def _local(schema: dict[str, Any], reference: object) -> tuple[list[str], dict[str, Any]] | None:
    """The subschema that a reference into the same schema means, with its path."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    path = [part.replace("~1", "/").replace("~0", "~") for part in reference[2:].split("/")]
    at: Any = schema
    for part in path:
        if not isinstance(at, dict) or part not in at:
            return None
        at = at[part]
    return (path, at) if isinstance(at, dict) else None


def _parts(schema: dict[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Subschemas with their paths, definitions first: what refers to one has its fault too."""
    for key in sorted(schema, key=lambda key: key not in ("$defs", "definitions")):
        value = schema[key]
        if key in _MAPS and isinstance(value, dict):
            yield from (([key, name], part) for name, part in value.items() if isinstance(part, dict))
        elif key in _LISTS and isinstance(value, list):
            yield from (([key, str(at)], part) for at, part in enumerate(value) if isinstance(part, dict))
        elif key in _SINGLE and isinstance(value, dict):
            yield [key], value


def _first_line(text: str) -> str:
    return " ".join(text.split())[:200]
