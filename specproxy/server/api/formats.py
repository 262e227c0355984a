"""``response_format``: what kind of text the answer has to be."""

from __future__ import annotations

import re
from typing import Any

from msgspec import Struct

from specproxy.server.api.body import typed
from specproxy.server.api.common import require
from specproxy.structured.schemas import ANY_OBJECT, AnswerSchema, compile_schema

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_WHERE = "response_format"


class NamedSchema(Struct):
    """``response_format.json_schema``. ``name`` and ``description`` are for the client's own use."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


def answer_schema(given: dict[str, Any] | None) -> AnswerSchema | None:
    """The schema that a ``response_format`` asks for; ``None`` for plain text. Raises InvalidRequest."""
    if given is None:
        return None
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return compile_schema(ANY_OBJECT, _WHERE, strict=True)
    require(kind == "json_schema", f"{_WHERE}.type", "'text', 'json_object' or 'json_schema'", kind)
    where = f"{_WHERE}.json_schema"
    named = typed(given.get("json_schema"), NamedSchema, where)
    require(_NAME.fullmatch(named.name) is not None, f"{where}.name", "1 to 64 of a-z, A-Z, 0-9, _ and -", named.name)
    return compile_schema(named.schema, f"{where}.schema", strict=bool(named.strict))


def wants_format(body: bytes) -> bool:
    """Whether a body may have schemas to compile, which takes longer than reading it."""
    return any(name in body for name in (b'"json_schema"', b'"tools"', b'"functions"'))
