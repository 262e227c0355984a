"""An answer's text in pieces to events: first its thoughts, then its calls, where a model has them."""

from __future__ import annotations

from specproxy.tools.calls import ToolParser
from specproxy.tools.events import Event, Text, merged
from specproxy.tools.reasoning import ReasoningParser


class AnswerParser:
    """The parsers of one answer in their order; with neither, all is text."""

    def __init__(self, reasoning: ReasoningParser | None = None, tools: ToolParser | None = None) -> None:
        self._reasoning = reasoning
        self._tools = tools

    def push(self, text: str) -> list[Event]:
        """What ``text`` adds."""
        if self._reasoning is None:
            return self._push_text(text)
        return self._route(self._reasoning.push(text))

    def flush(self) -> list[Event]:
        """What is left at the answer's end."""
        events = [] if self._reasoning is None else self._route(self._reasoning.flush())
        return merged(events + ([] if self._tools is None else self._tools.flush()))

    def _route(self, events: list[Event]) -> list[Event]:
        """Thoughts as they are, text through the reader of calls."""
        routed: list[Event] = []
        for event in events:
            routed += self._push_text(event.text) if isinstance(event, Text) else [event]
        return merged(routed)

    def _push_text(self, text: str) -> list[Event]:
        if self._tools is not None:
            return self._tools.push(text)
        return [Text(text)] if text else []
