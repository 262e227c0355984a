"""Check plain values against msgspec Structs, finding every fault, each with its line and what was expected instead.

msgspec itself stops at the first fault and knows neither lines nor what the user may have meant.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import inspect

from specproxy.config.yaml_reader import Document, KeyPath, Problem


def suggest(word: str, known: Iterable[str]) -> str:
    """``; did you mean "x"?`` for the closest of ``known``, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def show(value: object) -> str:
    """A value as the user wrote it, cut to a line's length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def check(document: Document, kind: object, problems: list[Problem], path: KeyPath = (), value: object = None) -> None:
    """Append a problem for everything in ``document`` that is no ``kind``.

    With ``path``, ``value`` is checked alone, as what stands at ``path``.
    """
    checked = document.value if not path else value
    _Checker(document, problems).check(checked, inspect.type_info(kind), path)


def misfits(value: object, kind: inspect.Type) -> list[Problem]:
    """What is wrong with ``value`` as a ``kind``, for values that come from no file."""
    found: list[Problem] = []
    _Checker(Document("", value), found).check(value, kind, ())
    return found


def expectation(kind: inspect.Type) -> str:
    """What a type accepts, in words."""
    match kind:
        case inspect.Metadata(type=inner):
            return "false" if _const_false(kind) else expectation(inner)
        case inspect.UnionType(types=members):
            words = list(dict.fromkeys(expectation(member) for member in _sorted(members)))
            return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]
        case inspect.LiteralType(values=values):
            return " or ".join(show(value) for value in values)
        case inspect.IntType() | inspect.FloatType():
            return ("a whole number" if isinstance(kind, inspect.IntType) else "a number") + _bounds(kind)
        case inspect.StrType(pattern=pattern):
            return "text" if pattern is None else f"text of the form {pattern}"
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
        case inspect.ListType(item_type=item):
            return f"a list (each {expectation(item)})"
        case inspect.StructType(fields=fields):
            return "a mapping with " + ", ".join(item.encode_name for item in fields)
        case inspect.DictType(value_type=item):
            return f"a mapping of names to {expectation(item)}"
        case _:
            return "a value"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    low = kind.ge if kind.ge is not None else kind.gt
    high = kind.le if kind.le is not None else kind.lt
    above = "" if low is None else f" above {low:g}" if kind.ge is None else f" from {low:g}"
    below = "" if high is None else f" below {high:g}" if kind.le is None else f" to {high:g}"
    if above and kind.ge is not None and not below:
        above = f" of at least {low:g}"
    elif below and kind.le is not None and not above:
        below = f" of at most {high:g}"
    return f"{above} and{below}" if above and below and not below.startswith(" to") else above + below


def _sorted(members: Iterable[inspect.Type]) -> list[inspect.Type]:
    """Words first, then scalars, then what has parts: the order in which people read alternatives."""
    rank: dict[type, int] = {inspect.LiteralType: 0, inspect.Metadata: 1, inspect.ListType: 3, inspect.StructType: 4}
    return sorted(members, key=lambda member: rank.get(type(member), 2))


def _const_false(kind: inspect.Metadata) -> bool:
    return kind.extra_json_schema is not None and kind.extra_json_schema.get("const") is False


@dataclass
class _Checker:
    document: Document
    problems: list[Problem]

    def check(self, value: object, kind: inspect.Type, path: KeyPath) -> None:
        match kind:
            case inspect.UnionType():
                self._union(value, kind, path)
            case inspect.StructType():
                self._struct(value, kind, path)
            case inspect.DictType():
                if isinstance(value, dict):
                    for key, item in value.items():
                        self.check(item, kind.value_type, (*path, key))
                else:
                    self._refuse(value, kind, path)
            case inspect.ListType():
                if isinstance(value, list) and (kind.min_length is None or len(value) >= kind.min_length):
                    for index, item in enumerate(value):
                        self.check(item, kind.item_type, (*path, index))
                else:
                    self._refuse(value, kind, path)
            case _:
                if not _scalar_fits(value, kind):
                    self._refuse(value, kind, path)

    def _refuse(self, value: object, kind: inspect.Type, path: KeyPath) -> None:
        members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
        words = [str(word) for member in members if isinstance(member, inspect.LiteralType) for word in member.values]
        hint = suggest(value, words) if isinstance(value, str) else ""
        quote = "; write it in quotes" if _only_needs_quotes(value, kind) else ""
        message = f"expected {expectation(kind)}, got {show(value)}{hint}{quote}"
        self.problems.append(self.document.problem(path, message))

    def _union(self, value: object, kind: inspect.UnionType, path: KeyPath) -> None:
        for member in kind.types:
            trial = _Checker(self.document, [])
            trial.check(value, member, path)
            if not trial.problems:
                return None
        for member in kind.types:
            if isinstance(value, list) and value and isinstance(member, inspect.ListType):
                return self.check(value, member, path)
            if isinstance(value, dict) and isinstance(member, inspect.StructType | inspect.DictType):
                return self.check(value, member, path)
        return self._refuse(value, kind, path)

    def _struct(self, value: object, kind: inspect.StructType, path: KeyPath) -> None:
        if not isinstance(value, dict):
            self._refuse(value, kind, path)
            return
        fields = {item.encode_name: item for item in kind.fields}
        for key, item in value.items():
            if key in fields:
                self.check(item, fields[key].type, (*path, key))
            elif kind.forbid_unknown_fields:
                message = f'unknown key "{key}"{suggest(key, fields) or "; known: " + ", ".join(fields)}'
                self.problems.append(self.document.problem((*path, key), message))
        for name, item in fields.items():
            if item.required and name not in value:
                message = f'"{name}" is missing; expected {expectation(item.type)}'
                self.problems.append(self.document.problem(path, message))


def _scalar_fits(value: object, kind: inspect.Type) -> bool:
    match kind:
        case inspect.Metadata(type=inner):
            return value is False if _const_false(kind) else _scalar_fits(value, inner)
        case inspect.AnyType():
            return True
        case inspect.LiteralType(values=values):
            return isinstance(value, str | int) and not isinstance(value, bool) and value in values
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.NoneType():
            return value is None
        case inspect.StrType():
            return isinstance(value, str) and _text_fits(value, kind)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool) and _in_bounds(value, kind)
        case inspect.FloatType():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and math.isfinite(value) and _in_bounds(value, kind)  # type: ignore[arg-type]
        case _:
            raise TypeError(f"settings may not be declared as {kind}")


def _text_fits(value: str, kind: inspect.StrType) -> bool:
    if kind.min_length is not None and len(value) < kind.min_length:
        return False
    return kind.pattern is None or re.search(kind.pattern, value) is not None


def _in_bounds(value: int | float, kind: inspect.IntType | inspect.FloatType) -> bool:
    return (
        (kind.ge is None or value >= kind.ge)
        and (kind.gt is None or value > kind.gt)
        and (kind.le is None or value <= kind.le)
        and (kind.lt is None or value < kind.lt)
    )


def _only_needs_quotes(value: object, kind: inspect.Type) -> bool:
    """Whether text is expected where YAML reads ``1`` or ``true`` as something else."""
    if not isinstance(value, bool | int | float):
        return False
    members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return any(isinstance(member, inspect.StrType) for member in members)
