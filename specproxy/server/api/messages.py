"""Messages as clients send them, made into what chat templates expect."""

from __future__ import annotations

from typing import Any

import msgspec

from specproxy.errors import InvalidRequest
from specproxy.server.api.body import typed
from specproxy.server.api.common import text_parts

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
PART_SEPARATOR = "\n"
"""Between text parts of one message, as vLLM and llama.cpp join them: two parts must not run together."""


class _Function(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


def template_messages(given: Any) -> list[dict[str, Any]]:
    """Check every message; content becomes a string, arguments of tool calls an object, other keys stay.

    Raises InvalidRequest naming the message and field, such as ``messages[2].content[0]``.
    """
    if given is None:
        raise InvalidRequest("`messages` is missing", param="messages")
    messages = typed(given, list[dict[str, Any]], "messages")
    if not messages:
        raise InvalidRequest("`messages` is empty; at least one message is needed", param="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(given: dict[str, Any], where: str) -> dict[str, Any]:
    role = given.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"`{where}.role` must be one of {', '.join(ROLES)}, got {role!r}", param=f"{where}.role")
    message = {name: value for name, value in given.items() if name not in ("function_call", "refusal")}
    message["content"] = _content(given, role, where)
    calls = _tool_calls(given, where)
    if calls:
        message["tool_calls"] = calls
    else:
        message.pop("tool_calls", None)
    if role == "function":
        # The older form of a tool's answer; templates know today's.
        message["role"] = "tool"
    if message.get("name") is not None:
        typed(message["name"], str, f"{where}.name")
    return message


def _content(given: dict[str, Any], role: str, where: str) -> str:
    """The text of a message. Only an assistant may say nothing, when it calls a tool instead, or refuses."""
    content = given.get("content")
    if content is None and role == "assistant":
        return typed(given.get("refusal") or "", str, f"{where}.refusal")
    if content is None:
        raise InvalidRequest(f"`{where}.content` is missing", param=f"{where}.content")
    kinds = ("text", "refusal") if role == "assistant" else ("text",)
    return text_parts(content, f"{where}.content", separator=PART_SEPARATOR, kinds=kinds)


def _tool_calls(given: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Tool calls with their arguments as an object, since templates write them out as JSON themselves."""
    if given.get("function_call") is not None:
        return [{"type": "function", "function": _function(given["function_call"], f"{where}.function_call")}]
    where = f"{where}.tool_calls"
    calls = typed(given.get("tool_calls") or [], list[dict[str, Any]], where)
    return [
        call | {"function": _function(call.get("function"), f"{where}[{i}].function")} for i, call in enumerate(calls)
    ]


def _function(given: Any, where: str) -> dict[str, Any]:
    function = typed(given, _Function, where)
    arguments = function.arguments
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments, type=dict[str, Any]) if arguments.strip() else {}
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"`{where}.arguments` is not a JSON object in a string: {error}", param=f"{where}.arguments"
            ) from None
    return {"name": function.name, "arguments": arguments or {}}
