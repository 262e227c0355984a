"""Prompts and running answers take turns.

Without drafts a prompt chunk and a decode step alternate: a running answer gets a token for each chunk that it waits
for. With drafts a step brings it several tokens, so that as many chunks may come before the next one, at the same pace
for whoever reads: prompts begin sooner, and steps are not made while there are few answers to share them.
"""

from __future__ import annotations

from collections.abc import Sequence

from specproxy.vocabulary import Delta

MEMORY = 0.8
"""Weight of what was, in the mean of tokens that a step brings."""

NEARLY = 0.1
"""A mean approaches a whole number from below and counts as that from here on."""

MOST_CHUNKS = 4
"""Chunks in a row, however many tokens a step brings: an answer may stand still for so long."""


class Turns:
    """Whose turn it is while prompts wait and answers run."""

    def __init__(self) -> None:
        self._tokens = 1.0
        self._chunks = 0

    def prompts_turn(self, *, decoding: bool) -> bool:
        """Whether a waiting prompt goes on now; counted as done if so. ``decoding``: whether an answer could."""
        if decoding and self._chunks >= min(MOST_CHUNKS, int(self._tokens + NEARLY)):
            self._chunks = 0
            return False
        self._chunks += 1
        return True

    def decoded(self, deltas: Sequence[Delta]) -> None:
        """What a decode step brought."""
        counts = [len(delta.tokens) for delta in deltas if delta.tokens]
        if counts:
            self._tokens = MEMORY * self._tokens + (1.0 - MEMORY) * sum(counts) / len(counts)
