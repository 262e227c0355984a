"""Messages that call tools or answer calls, as chat templates want them.

Clients send arguments as JSON in a string; templates write them out as JSON themselves, so they get the object, unless
they print what they are given. Some want a call's name beside its answer, some an id of their own form: both can be
told from the call that is answered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from specproxy.errors import InvalidRequest
from specproxy.tools.formats import ToolFormat

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH = 24


def make_call_id(form: ToolFormat | None, answer: str, choice: int, index: int) -> str:
    """The id of call ``index`` of a choice of answer ``answer``: the same whenever it is made again."""
    length = form.id_length if form is not None else 0
    name = _digits(f"{answer}\0{choice}\0{index}", length or _ID_LENGTH)
    return name if length else f"call_{name}"


def template_history(messages: Sequence[Mapping[str, Any]], form: ToolFormat | None) -> list[dict[str, Any]]:
    """``messages`` with their calls and answers as a template of this form wants them; others are left as they are.

    ``function_call`` and the role ``function`` become today's. An answer without ``tool_call_id`` answers the oldest
    call that has no answer yet. Raises InvalidRequest naming the message and field.
    """
    made: list[dict[str, Any]] = []
    waiting: dict[str, dict[str, Any]] = {}
    for i, message in enumerate(messages):
        where, role = f"messages[{i}]", message.get("role")
        if role == "assistant":
            message, waiting = _with_calls(message, form, i)
        elif role in ("tool", "function"):
            message = _answer(message, waiting, where)
        made.append(dict(message))
    return made


def _with_calls(
    message: Mapping[str, Any], form: ToolFormat | None, turn: int
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The assistant's message, and its calls by the ids that the client gave them."""
    where = f"messages[{turn}]"
    rest = {name: value for name, value in message.items() if name not in ("tool_calls", "function_call")}
    older = message.get("function_call")
    if older is not None:
        given: Any = [{"function": older}]
    else:
        given = message.get("tool_calls") or []
        where = f"{where}.tool_calls"
    if not isinstance(given, list):
        raise InvalidRequest(f"`{where}` must be an array", param=where)
    calls: dict[str, dict[str, Any]] = {}
    for i, call in enumerate(given):
        place = f"{where}.function_call" if older is not None else f"{where}[{i}].function"
        own = call.get("id") if isinstance(call, dict) else None
        if own is not None and not isinstance(own, str):
            raise InvalidRequest(f"`{where}[{i}].id` must be a string", param=f"{where}[{i}].id")
        key = own or f"{turn}\0{i}"
        function = _function(call.get("function") if isinstance(call, dict) else None, form, place)
        calls[key] = {"id": _fitting_id(key, form, bool(own)), "type": "function", "function": function}
    return (rest | {"tool_calls": list(calls.values())} if calls else rest), calls


def _function(given: Any, form: ToolFormat | None, where: str) -> dict[str, Any]:
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise InvalidRequest(f"`{where}` must be an object with a name and arguments", param=where)
    arguments = given.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"`{where}.arguments` is not JSON in a string: {error}", param=f"{where}.arguments"
            ) from None
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"`{where}.arguments` must be a JSON object", param=f"{where}.arguments")
    as_text = form is not None and form.arguments_as_text
    return {
        "name": given["name"],
        "arguments": json.dumps(arguments, ensure_ascii=False) if as_text else arguments,
    }


def _answer(message: Mapping[str, Any], waiting: dict[str, dict[str, Any]], where: str) -> dict[str, Any]:
    """A tool's answer, with the id and name of the call that it answers, which is then no longer waiting."""
    own = message.get("tool_call_id")
    if own is not None and not isinstance(own, str):
        raise InvalidRequest(f"`{where}.tool_call_id` must be a string", param=f"{where}.tool_call_id")
    named = message.get("name")
    if own is None:
        matching = (key for key, call in waiting.items() if named in (None, call["function"]["name"]))
        own = next(matching, None)
    if own not in waiting:
        expected = "the id of a call in the assistant's message before it" if own is not None else "an assistant's call"
        raise InvalidRequest(
            f"`{where}` answers a call that was not made, or that was answered already; expected {expected}",
            param=f"{where}.tool_call_id",
        )
    call = waiting.pop(own)
    return dict(message) | {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"]}


def _fitting_id(key: str, form: ToolFormat | None, given: bool) -> str:
    """The client's id where the template takes it, else one of the right form made from it."""
    length = form.id_length if form is not None else 0
    if not length:
        return key if given else f"call_{_digits(key, _ID_LENGTH)}"
    fits = given and len(key) == length and key.isascii() and key.isalnum()
    return key if fits else _digits(key, length)


def _digits(text: str, length: int) -> str:
    """``length`` letters and digits that stand for ``text``."""
    number = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass")).digest())
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(digits)
