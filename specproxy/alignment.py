"""Alignment of an answer with its Predicted Output: what drafts are taken from, and what the usage counts.

An Alignment walks along the prediction with the output, one token at a time, so it is a function of (prediction,
output) alone: the counts reported as ``accepted_prediction_tokens`` are the same whatever K, batch or drafter ran, and
also with speculation off.

It starts at the prediction's first token. Where the output leaves the prediction, the output has put something else in
place of a piece, left a piece out, put something in, or gone elsewhere. After a long agreement the first guess is one
token replaced; otherwise the prediction is searched, both ways, for the longest piece that the output just ended with,
the nearest first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

_REACH = 8
"""A matching piece is measured up to this many tokens."""
_LOOK = 32
"""Occurrences of a token that are looked at in each direction; bounds the time spent on one output token."""
_NEAR = 32
"""Tokens ahead within which one single matching token is taken for the place to go on."""
_LONG_RUN = 8


class Alignment:
    """Where in ``prediction`` the output stands.

    ``cursor``: index of the prediction token expected next (``len(prediction)``: none). ``run``: output tokens in a
    row that agreed, 0 right after a disagreement. ``accepted``: prediction tokens found in the output so far, each
    counted once.
    """

    def __init__(self, prediction: Sequence[int]) -> None:
        self.prediction = prediction
        self.cursor = 0
        self.run = 0
        self.accepted = 0
        self.seen = 0
        self._anchor = 0
        self._astray = 0
        self._tail: list[int] = []
        self._covered = bytearray(len(prediction))
        self._places: dict[int, list[int]] | None = None

    def feed(self, token: int) -> None:
        """The output goes on with ``token``."""
        self.seen += 1
        self._tail.append(token)
        if len(self._tail) > _REACH:
            del self._tail[0]
        if self.cursor < len(self.prediction) and self.prediction[self.cursor] == token:
            self.cursor += 1
            self.run += 1
            self._astray = 0
            self._cover(1)
            return
        if self.run >= 2:
            self._anchor = self.cursor
        settled = self.run >= _LONG_RUN
        self.run = 0
        self._astray += 1
        end, length = self._lone(token) if settled else self._search(token)
        if length:
            self.cursor = end
            self.run = length
            self._cover(min(length, self._astray))
            self._astray = 0
        else:
            self.cursor = min(self._anchor + 1, len(self.prediction))

    @property
    def confidence(self) -> int:
        """Bucket: 0 a hunch, 1 a short agreement, 2 a long one or the very beginning."""
        if self.run >= 4 or self.seen == 0:
            return 2
        return 1 if self.run >= 2 else 0

    def _cover(self, length: int) -> None:
        """The last ``length`` tokens before the cursor are in the output."""
        for i in range(self.cursor - length, self.cursor):
            self.accepted += not self._covered[i]
            self._covered[i] = 1

    def _occurrences(self, token: int) -> list[int]:
        if self._places is None:
            self._places = {}
            for i, known in enumerate(self.prediction):
                self._places.setdefault(known, []).append(i)
        return self._places.get(token, [])

    def _lone(self, token: int) -> tuple[int, int]:
        """(position after it, 1) of ``token`` where it stands only once within reach ahead, else (0, 0)."""
        places = self._occurrences(token)
        first = bisect_left(places, self._anchor)
        ahead = places[first : bisect_left(places, self._anchor + _NEAR)]
        return (ahead[0] + 1, 1) if len(ahead) == 1 else (0, 0)

    def _search(self, token: int) -> tuple[int, int]:
        """(position after, length) of the longest piece that ends the output, nearest first; length 0: none.

        One token counts only near ahead, two only ahead, three anywhere: going back needs more evidence.
        """
        places = self._occurrences(token)
        first = bisect_left(places, self._anchor)
        best, best_length = 0, 0
        for place in places[first : first + _LOOK]:
            length = self._agreement(place)
            if length > max(best_length, int(place - self._anchor >= _NEAR)):
                best, best_length = place + 1, length
        for place in reversed(places[max(0, first - _LOOK) : first]):
            length = self._agreement(place)
            if length > max(best_length, 2):
                best, best_length = place + 1, length
        return best, best_length

    def _agreement(self, place: int) -> int:
        """How many tokens up to and including ``place`` equal the end of the output, at most _REACH."""
        length = 0
        for token in reversed(self._tail):
            if length > place or self.prediction[place - length] != token:
                break
            length += 1
        return length

    @property
    def rejected(self) -> int:
        """Prediction tokens that the output so far does not have."""
        return len(self.prediction) - self.accepted
