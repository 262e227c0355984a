"""The API's objects for calls and thoughts, streamed and whole, made from events.

In a stream every delta of a call carries its index; the first carries id, type and name, all others only more of the
arguments. Answers to the older ``functions`` have ``function_call`` instead, without index and id. The API of chat
completions has no field for thoughts; ``reasoning_content`` is the one that engines and clients agree on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from specproxy.tools.events import Arguments, CallBegins, CallEnds, Event, Malformed, Reasoning, Text


class FunctionCall(Struct):
    """``arguments``: JSON in a string."""

    name: str
    arguments: str


class ToolCall(Struct, kw_only=True):
    """A call in a whole message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionDelta(Struct):
    """What a chunk adds to a function's call."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(Struct, kw_only=True):
    """What a chunk adds to one call."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class Additions(Struct):
    """What some events add to a message, field by field as a chunk's delta has them; absent where nothing is added."""

    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


def additions(events: Sequence[Event], *, legacy: bool = False) -> list[Additions]:
    """``events`` as deltas, one for each stretch of content, thoughts, or calls, in their order.

    ``legacy``: the first call as ``function_call``; there is no place for others.
    """
    deltas: list[Additions] = []
    for event in events:
        if isinstance(event, Text | Malformed):
            _add_content(deltas, event.text)
        elif isinstance(event, Reasoning):
            deltas.append(Additions(reasoning_content=event.text))
        elif legacy:
            _add_legacy(deltas, event)
        elif not isinstance(event, CallEnds):
            _add_call(deltas, event)
    return deltas


def finish_reason(ending: str, num_calls: int, *, legacy: bool = False) -> str:
    """What the choice says of its end: ``stop`` with calls made is that they are to be answered."""
    if ending != "stop" or not num_calls:
        return ending
    return "function_call" if legacy else "tool_calls"


@dataclass
class MessageParts:
    """A whole message, gathered from an answer's events."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)

    def add(self, events: Sequence[Event]) -> None:
        """Take the next events."""
        for event in events:
            if isinstance(event, Text | Malformed):
                self.texts.append(event.text)
            elif isinstance(event, Reasoning):
                self.thoughts.append(event.text)
            elif isinstance(event, CallBegins):
                self.tool_calls.append(ToolCall(id=event.id, function=FunctionCall(event.name, "")))
            elif isinstance(event, Arguments):
                self.tool_calls[event.index].function.arguments += event.fragment

    @property
    def content(self) -> str | None:
        """The visible text; ``None`` where the message only calls."""
        return "".join(self.texts) or (None if self.tool_calls else "")

    @property
    def reasoning_content(self) -> str | None:
        """The thoughts, if there are any."""
        return "".join(self.thoughts) or None

    @property
    def function_call(self) -> FunctionCall | None:
        """The first call, for answers in the older form."""
        return self.tool_calls[0].function if self.tool_calls else None


def _add_content(deltas: list[Additions], text: str) -> None:
    last = deltas[-1] if deltas else None
    if last is not None and last.content is not UNSET:
        last.content += text
    else:
        deltas.append(Additions(content=text))


def _add_call(deltas: list[Additions], event: CallBegins | Arguments) -> None:
    last = deltas[-1] if deltas else None
    calls: list[ToolCallDelta] = []
    if last is not None and last.tool_calls is not UNSET:
        calls = last.tool_calls
    else:
        deltas.append(Additions(tool_calls=calls))
    if isinstance(event, CallBegins):
        calls.append(
            ToolCallDelta(index=event.index, id=event.id, type="function", function=FunctionDelta(event.name, ""))
        )
    elif calls and calls[-1].index == event.index:
        calls[-1].function.arguments = (calls[-1].function.arguments or "") + event.fragment
    else:
        calls.append(ToolCallDelta(index=event.index, function=FunctionDelta(arguments=event.fragment)))


def _add_legacy(deltas: list[Additions], event: Event) -> None:
    if isinstance(event, CallBegins) and event.index == 0:
        deltas.append(Additions(function_call=FunctionDelta(event.name, "")))
    elif isinstance(event, Arguments) and event.index == 0:
        last = deltas[-1] if deltas else None
        if last is not None and last.function_call is not UNSET:
            last.function_call.arguments = (last.function_call.arguments or "") + event.fragment
        else:
            deltas.append(Additions(function_call=FunctionDelta(arguments=event.fragment)))
