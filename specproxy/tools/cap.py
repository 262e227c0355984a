"""How many tools a conversation has called: what a policy's limit ``tool_calls`` counts.

A loop of calls that never ends costs a run each; the limit stops it. As all limits it refuses, and never shortens an
answer: a conversation at the limit is still answered, one beyond it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specproxy.errors import InvalidRequest


def count_tool_calls(messages: Sequence[Mapping[str, Any]]) -> int:
    """Calls made in ``messages``, in today's form or the older one; never fails.

    Where a client keeps the answers and drops the calls, the answers count.
    """
    calls = answers = 0
    for message in messages:
        listed = message.get("tool_calls")
        calls += len(listed) if isinstance(listed, list) else 0
        calls += isinstance(message.get("function_call"), Mapping)
        answers += message.get("role") in ("tool", "function")
    return max(calls, answers)


def check_tool_calls(messages: Sequence[Mapping[str, Any]], limit: int | None, route: str) -> None:
    """Raise InvalidRequest where the conversation has made more calls than ``limit``; ``None`` limits nothing."""
    made = count_tool_calls(messages)
    if limit is not None and made > limit:
        raise InvalidRequest(
            f"the number of tool calls so far is {made}; route {route} of this server allows {limit} at most",
            param="messages",
            code="route_limit_exceeded",
        )
