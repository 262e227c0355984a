"""A JSON object read character by character, strictly (RFC 8259), so that each prefix is known to be one.

Numbers and names are judged when they end, all else at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator

SPACE = " \t\n\r"
MAX_DEPTH = 200
"""Objects and arrays inside one another. Readers of the answer recurse, and give up at some thousand."""

_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")
_HEX = frozenset("0123456789abcdefABCDEF")
_CLOSERS = {"{": "}", "[": "]"}

Reader = Generator[None, str, None]
"""A coroutine that is sent one character at a time."""


class Fault(Exception):
    """The character just sent cannot stand where it does. The message says what was expected."""


def read_string() -> Generator[None, str, str]:
    """What follows an opening quote, up to the closing one; returns the string's value."""
    raw: list[str] = []
    while (char := (yield)) != '"':
        if char < " ":
            raise Fault("a control character in a string")
        raw.append(char)
        if char == "\\":
            raw.append((yield from _read_escape()))
    text: str = json.loads(f'"{"".join(raw)}"')
    return text


def _read_escape() -> Generator[None, str, str]:
    """What follows a backslash, as it is written."""
    char = yield
    if char not in '"\\/bfnrtu':
        raise Fault("an escape that JSON does not have")
    if char != "u":
        return char
    digits: list[str] = []
    for _ in range(4):
        digit = yield
        if digit not in _HEX:
            raise Fault(r"expected four hexadecimal digits behind \u")
        digits.append(digit)
    return "u" + "".join(digits)


def skip_space() -> Generator[None, str, str]:
    """The next character that is no white space."""
    while (char := (yield)) in SPACE:
        pass
    return char


def read_object() -> Reader:
    """What follows an opening brace, up to the brace that closes it, which is the last character that it takes."""
    closers = ["}"]
    char = yield from skip_space()
    member = char != "}"
    while closers:
        if member:
            if closers[-1] == "}":
                char = yield from _read_key(char)
            if char in _CLOSERS:
                closers.append(_CLOSERS[char])
                if len(closers) > MAX_DEPTH:
                    raise Fault(f"more than {MAX_DEPTH} objects inside one another")
                char = yield from skip_space()
                member = char != closers[-1]
                continue
            char = yield from _read_leaf(char)
        if char == closers[-1]:
            closers.pop()
            member = False
            if closers:
                char = yield from skip_space()
            continue
        if char != ",":
            raise Fault(f"expected a comma or {closers[-1]}")
        char = yield from skip_space()
        member = True


def _read_key(char: str) -> Generator[None, str, str]:
    """A member's name, whose first character is ``char``, and the colon; returns the first character of its value."""
    if char != '"':
        raise Fault("expected the name of a member, in quotes")
    yield from read_string()
    yield from expect_colon()
    return (yield from skip_space())


def expect_colon() -> Reader:
    """White space and a colon."""
    if (yield from skip_space()) != ":":
        raise Fault("expected a colon")


def expect(text: str, char: str) -> Reader:
    """``text``, whose first character should be ``char``."""
    for i, wanted in enumerate(text):
        if i:
            char = yield
        if char != wanted:
            raise Fault(f"expected {text}")


def _read_leaf(char: str) -> Generator[None, str, str]:
    """A string, number or name that begins with ``char``; returns the first character behind it but white space."""
    if char == '"':
        yield from read_string()
        return (yield from skip_space())
    raw: list[str] = []
    while char not in ",]}" and char not in SPACE:
        raw.append(char)
        char = yield
    if _SCALAR.fullmatch("".join(raw)) is None:
        raise Fault("expected a value")
    return (yield from skip_space()) if char in SPACE else char
