"""Stop strings, found character by character in a text that arrives in pieces.

The answer ends with the first character that completes a stop string; if several end there, the longest counts. So
the place depends on the text alone, not on how it was cut into pieces, and nothing that may turn out to be the start
of a stop string is shown before it is known not to be.

One Knuth-Morris-Pratt automaton per stop string: its state is how many characters of the string the text ends with.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StopString:
    """A stop string with its failure table: ``fall_back[i]`` is the longest border of its first i + 1 characters."""

    text: str
    fall_back: tuple[int, ...]

    @classmethod
    def compile(cls, text: str) -> StopString:
        """Build the table; O(len(text))."""
        borders = [0] * len(text)
        length = 0
        for i in range(1, len(text)):
            while length and text[i] != text[length]:
                length = borders[length - 1]
            length += text[i] == text[length]
            borders[i] = length
        return cls(text, tuple(borders))

    def advance(self, state: int, char: str) -> int:
        """State after one more character; ``len(text)`` means that the text now ends with the stop string."""
        if state == len(self.text):
            state = self.fall_back[state - 1]
        while state and char != self.text[state]:
            state = self.fall_back[state - 1]
        return state + (char == self.text[state])


class StopMatcher:
    """The stop strings of one sequence at work. ``stops`` must not be empty, nor hold empty strings."""

    __slots__ = ("_firsts", "_held", "_states", "_stops")

    def __init__(self, stops: tuple[StopString, ...]) -> None:
        self._stops = stops
        self._states = [0] * len(stops)
        self._firsts = {stop.text[0] for stop in stops}
        self._held = ""

    def push(self, piece: str, *, armed: bool = True, include: bool = False) -> tuple[str, str | None]:
        """Text that may be shown now, and the stop string that was completed, if one was.

        The text then ends before the stop string, or behind it with ``include``. While not ``armed``, stop strings
        that end in ``piece`` do not count.
        """
        if not self._held and self._firsts.isdisjoint(piece):
            self._states = [0] * len(self._states)
            return piece, None
        text = self._held + piece
        for end, char in enumerate(piece, start=len(self._held) + 1):
            found = self._advance(char) if armed else self._advance_unarmed(char)
            if found:
                self._held = ""
                return text[: end if include else end - len(found)], found
        held = max(min(state, len(stop.text) - 1) for state, stop in zip(self._states, self._stops, strict=True))
        self._held = text[len(text) - held :]
        return text[: len(text) - held], None

    def flush(self) -> str:
        """What was held back, once nothing can complete it any more."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> str:
        """Take one character; the longest stop string that it completes, or an empty string."""
        found = ""
        for i, stop in enumerate(self._stops):
            state = self._states[i] = stop.advance(self._states[i], char)
            if state == len(stop.text) > len(found):
                found = stop.text
        return found

    def _advance_unarmed(self, char: str) -> str:
        self._advance(char)
        return ""
