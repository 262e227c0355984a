"""From the bytes of a body to a typed value; every fault becomes a 400 that names the field."""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

import msgspec

from specproxy.errors import InvalidRequest

T = TypeVar("T")


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``; of duplicate names the last counts. Raises InvalidRequest."""
    if not body.strip():
        raise InvalidRequest("the body is empty; expected a JSON object")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        _refuse_non_finite(body)
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"expected a JSON object, got {kind_of(value)}")
    return value


def typed(value: Any, kind: type[T], where: str = "") -> T:
    """``value`` as ``kind``. ``where``: path of the value in the body. Raises InvalidRequest naming the field."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        fault, _, path = str(error).partition(" - at `$")
        path = where + path.rstrip("`")
        path = path.removeprefix(".")
        fault = fault[0].lower() + fault[1:]
        raise InvalidRequest(f"`{path}`: {fault}" if path else fault, param=path or None) from None


def kind_of(value: Any) -> str:
    """What JSON calls a decoded value."""
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
    return kinds.get(type(value), "null")


def _refuse_non_finite(body: bytes) -> None:
    """Name the field where the only fault may be a number that JSON does not have. Python writes NaN, and reads it."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return
    path = _find_non_finite(value, "")
    if path is not None:
        path = path.removeprefix(".")
        raise InvalidRequest(f"`{path}` must be a finite number", param=path or None)


def _find_non_finite(value: Any, path: str) -> str | None:
    """Path of the first number that is not finite. Iterative: the body may be deep."""
    stack = [(value, path)]
    while stack:
        value, path = stack.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return path
        if isinstance(value, dict):
            stack.extend((item, f"{path}.{name}") for name, item in value.items())
        elif isinstance(value, list):
            stack.extend((item, f"{path}[{i}]") for i, item in enumerate(value))
    return None
