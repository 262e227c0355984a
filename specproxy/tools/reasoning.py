"""Thoughts before an answer, told apart from it.

Only at the start of an answer, once, as the families that think write them. White space next to the markers belongs to
the form. Thoughts that never end are all thoughts.
"""

from __future__ import annotations

from msgspec import Struct

from specproxy.tools.events import Event, Reasoning, Text
from specproxy.tools.json_reader import SPACE
from specproxy.tools.openings import without_start_of


class ReasoningFormat(Struct, frozen=True):
    """The pair of markers around thoughts."""

    opening: str
    closing: str

    @property
    def markers(self) -> tuple[str, str]:
        """Both. Where they are special tokens, detokenizing must not leave them out."""
        return self.opening, self.closing

    def opened_by(self, prompt: str) -> bool:
        """Whether the prompt's text ends with the opening marker, so that the answer begins with thoughts."""
        return prompt.rstrip().endswith(self.opening)


_KNOWN = (ReasoningFormat("<think>", "</think>"), ReasoningFormat("[THINK]", "[/THINK]"))
"""Qwen 3, DeepSeek R1 and those distilled from it; Magistral."""


def detect_reasoning(template: str | None) -> ReasoningFormat | None:
    """The markers that a chat template's source writes or cuts off, ``None`` where there are none of the known."""
    return next((form for form in _KNOWN if template and form.closing in template), None)


class ReasoningParser:
    """One answer's thoughts and the text behind them. ``opened``: the prompt has opened them already."""

    def __init__(self, form: ReasoningFormat, *, opened: bool) -> None:
        self._form = form
        self._held = ""
        self._place = "inside" if opened else "before"
        self._fresh = True

    def push(self, piece: str) -> list[Event]:
        """What ``piece`` adds: thoughts, then text."""
        if self._place == "answer":
            return [Text(piece)] if piece else []
        text, self._held = self._held + piece, ""
        events: list[Event] = []
        if self._place == "before":
            text = self._look_for_opening(text, events)
        if self._place == "inside":
            text = self._think(text, events)
        if self._place == "behind":
            text = text.lstrip(SPACE)
            if text:
                self._place = "answer"
                events.append(Text(text))
        return events

    def flush(self) -> list[Event]:
        """What is left at the answer's end."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [Reasoning(held) if self._place == "inside" else Text(held)]

    def _look_for_opening(self, text: str, events: list[Event]) -> str:
        """Returns the text behind the opening marker; without one all of it is text, or waits."""
        body = text.lstrip(SPACE)
        opening = self._form.opening
        if body.startswith(opening):
            self._place = "inside"
            return body[len(opening) :]
        if opening.startswith(body):
            self._held = text
        else:
            self._place = "answer"
            events.append(Text(text))
        return ""

    def _think(self, text: str, events: list[Event]) -> str:
        """Returns the text behind the closing marker; holds back what may be its start, and white space before it."""
        if self._fresh:
            text = text.lstrip(SPACE)
        thought, closing, rest = text.partition(self._form.closing)
        shown = thought.rstrip(SPACE) if closing else without_start_of(self._form.closing, thought).rstrip(SPACE)
        if shown:
            self._fresh = False
            events.append(Reasoning(shown))
        if closing:
            self._place = "behind"
            return rest
        self._held = thought[len(shown) :]
        return ""
