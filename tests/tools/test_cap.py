"""The cap on a conversation's tool calls."""

from __future__ import annotations

from typing import Any

import pytest

from specproxy.errors import InvalidRequest
from specproxy.tools.cap import check_tool_calls, count_tool_calls

CALLS = {"role": "assistant", "tool_calls": [{"id": "a"}, {"id": "b"}]}
ANSWER = {"role": "tool", "content": ""}


@pytest.mark.parametrize(
    ("messages", "number"),
    [
        ([], 0),
        ([{"role": "user", "content": "hi"}], 0),
        ([CALLS, ANSWER, ANSWER, CALLS], 4),
        ([{"role": "assistant", "function_call": {"name": "a"}}, {"role": "function"}], 1),
        ([ANSWER, ANSWER, ANSWER], 3),
        ([{"tool_calls": "x"}, {"function_call": None}], 0),
    ],
)
def test_calls_are_counted_in_either_form(messages: list[dict[str, Any]], number: int) -> None:
    """Calls count once, by themselves or by their answers, and what is malformed does not."""
    assert count_tool_calls(messages) == number


def test_a_conversation_beyond_the_cap_is_refused() -> None:
    """At the cap a conversation goes on, beyond it it gets a 400; without a cap it never does."""
    check_tool_calls([CALLS], 2, "agents")
    check_tool_calls([CALLS] * 100, None, "agents")
    with pytest.raises(InvalidRequest, match="so far is 4; route agents of this server allows 2") as caught:
        check_tool_calls([CALLS, CALLS], 2, "agents")
    assert (caught.value.param, caught.value.code) == ("messages", "route_limit_exceeded")
