"""Messages as clients send them, made into what chat templates expect."""

from __future__ import annotations

from typing import Any

from specproxy.errors import InvalidRequest
from specproxy.server.api.body import typed
from specproxy.server.api.common import text_parts
from specproxy.tools.formats import ToolFormat
from specproxy.tools.history import template_history

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
PART_SEPARATOR = "\n"
"""Between text parts of one message, as vLLM and llama.cpp join them: two parts must not run together."""


def template_messages(given: Any, form: ToolFormat | None) -> list[dict[str, Any]]:
    """Check every message; content becomes a string, calls and their answers what a template of ``form`` takes, other
    keys stay.

    Raises InvalidRequest naming the message and field, such as ``messages[2].content[0]``.
    """
    if given is None:
        raise InvalidRequest("`messages` is missing", param="messages")
    messages = typed(given, list[dict[str, Any]], "messages")
    if not messages:
        raise InvalidRequest("`messages` is empty; at least one message is needed", param="messages")
    return template_history([_message(message, f"messages[{i}]") for i, message in enumerate(messages)], form)


def _message(given: dict[str, Any], where: str) -> dict[str, Any]:
    role = given.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"`{where}.role` must be one of {', '.join(ROLES)}, got {role!r}", param=f"{where}.role")
    message = {name: value for name, value in given.items() if name != "refusal"}
    message["content"] = _content(given, role, where)
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
