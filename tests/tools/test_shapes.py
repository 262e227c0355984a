"""Events as the API's objects, checked with the SDK's own types."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from specproxy.tools.events import Arguments, CallBegins, CallEnds, Event, Malformed, Reasoning, Text
from specproxy.tools.shapes import MessageParts, additions, finish_reason

EVENTS: list[Event] = [
    Reasoning("hm"),
    Text("So"),
    Malformed("<tool_call>x", "why"),
    CallBegins(0, "call_0", "a"),
    Arguments(0, '{"x": 1}'),
    CallEnds(0),
    CallBegins(1, "call_1", "b"),
    Arguments(1, "{}"),
    CallEnds(1),
]


def plain(value: Any) -> Any:
    """A value as a client decodes it."""
    return msgspec.json.decode(msgspec.json.encode(value))


def test_deltas_have_the_sdks_shape() -> None:
    """Index on every delta of a call; id, type and name once; arguments as fragments; content apart."""
    deltas = [plain(delta) for delta in additions(EVENTS)]
    for delta in deltas:
        ChoiceDelta.model_validate(delta, strict=True)
    assert deltas == [
        {"reasoning_content": "hm"},
        {"content": "So<tool_call>x"},
        {
            "tool_calls": [
                {"index": 0, "id": "call_0", "type": "function", "function": {"name": "a", "arguments": '{"x": 1}'}},
                {"index": 1, "id": "call_1", "type": "function", "function": {"name": "b", "arguments": "{}"}},
            ]
        },
    ]


def test_later_fragments_carry_the_index_alone() -> None:
    """A delta with more of a call's arguments repeats neither id nor name."""
    assert plain(additions([Arguments(1, '{"a'), Arguments(1, '":')])) == [
        {"tool_calls": [{"index": 1, "function": {"arguments": '{"a":'}}]}
    ]
    assert additions([CallEnds(0)]) == []


def test_the_older_form_has_one_call_without_index() -> None:
    """function_call streams name and arguments of the first call, and nothing of others."""
    deltas = plain(additions(EVENTS, legacy=True))
    assert deltas[-1] == {"function_call": {"name": "a", "arguments": '{"x": 1}'}}
    assert plain(additions([Arguments(0, "}")], legacy=True)) == [{"function_call": {"arguments": "}"}}]


def test_a_whole_message_is_gathered() -> None:
    """Content, thoughts and calls of an answer, however its events came."""
    parts = MessageParts()
    for event in EVENTS:
        parts.add([event])
    assert (parts.content, parts.reasoning_content) == ("So<tool_call>x", "hm")
    calls = [ChatCompletionMessageFunctionToolCall.model_validate(plain(call)) for call in parts.tool_calls]
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("call_0", "a", '{"x": 1}'),
        ("call_1", "b", "{}"),
    ]
    assert parts.function_call == parts.tool_calls[0].function


def test_a_message_that_only_calls_has_no_content() -> None:
    """content is null beside calls where nothing was said, and empty where there is nothing at all."""
    parts = MessageParts()
    assert (parts.content, parts.reasoning_content, parts.function_call) == ("", None, None)
    parts.add([CallBegins(0, "call_0", "a"), CallEnds(0, "broke off")])
    assert parts.content is None


@pytest.mark.parametrize(
    ("ending", "calls", "legacy", "reason"),
    [
        ("stop", 0, False, "stop"),
        ("stop", 1, False, "tool_calls"),
        ("stop", 1, True, "function_call"),
        ("length", 1, False, "length"),
    ],
)
def test_the_finish_reason_tells_of_calls(ending: str, calls: int, legacy: bool, reason: str) -> None:
    """An answer that ended by itself and made calls says so; one that was cut off says that."""
    assert finish_reason(ending, calls, legacy=legacy) == reason
