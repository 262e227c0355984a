"""One sequence's answer, put together token by token: text, stop strings, and how many tokens count.

Every token passes the same steps whatever burst it came in, so the result cannot depend on the grouping: neither on
speculation nor on how frames were merged on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from specproxy.text.detokenizer import detokenizer_for
from specproxy.text.stops import StopMatcher, StopString
from specproxy.text.tokenizer import Tokenizer

Ending = Literal["stop", "length"]


@dataclass(frozen=True)
class TextOptions:
    """How a request wants its text. ``min_tokens``: a stop string counts from that token on; ``kept``: special tokens
    that have text even where others have none."""

    stops: tuple[StopString, ...] = ()
    include_stop: bool = False
    skip_special: bool = True
    min_tokens: int = 0
    kept: frozenset[int] = frozenset()


@dataclass(slots=True)
class Piece:
    """What some tokens added. ``text``: may be shown. ``tokens``: how many counted, all but those behind a stop string.

    ``offsets``: for each of these, where its text starts in the answer, in characters (a token inside a character:
    where that character starts). ``stop``: the stop string, or the stop token's id, that ended the answer.
    """

    text: str = ""
    tokens: int = 0
    offsets: list[int] = field(default_factory=list)
    ending: Ending | None = None
    stop: str | int | None = None


class Assembler:
    """Text of one sequence. ``ended`` is true once its answer is complete; tokens after that are ignored."""

    __slots__ = ("_chars", "_detokenizer", "_matcher", "_options", "ended", "num_tokens")

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], options: TextOptions) -> None:
        self._detokenizer = detokenizer_for(tokenizer, prompt, skip_special=options.skip_special, kept=options.kept)
        self._matcher = StopMatcher(options.stops) if options.stops else None
        self._options = options
        self._chars = 0
        self.num_tokens = 0
        self.ended = False

    def push(self, tokens: Sequence[int], ending: Ending | None = None, stop_token: int | None = None) -> Piece:
        """Take new tokens. ``ending``: the engine's finish reason when these are the last; ``stop_token``: the token
        that ended the answer, then the last of ``tokens``, whose own text is shown only with ``include_stop``.
        """
        piece = Piece()
        if self.ended:
            return piece
        parts: list[str] = []
        silent = len(tokens) - 1 if stop_token is not None and not self._options.include_stop else len(tokens)
        for i, token in enumerate(tokens):
            self.num_tokens += 1
            piece.tokens += 1
            piece.offsets.append(self._chars)
            text = self._detokenizer.push(token) if i < silent else ""
            self._chars += len(text)
            if self._matcher is not None and text:
                armed = self.num_tokens >= self._options.min_tokens
                text, found = self._matcher.push(text, armed=armed, include=self._options.include_stop)
                if found is not None:
                    parts.append(text)
                    return self._end(piece, parts, "stop", found)
            parts.append(text)
        if ending is not None:
            parts.append(self._rest())
            return self._end(piece, parts, ending, stop_token)
        piece.text = "".join(parts)
        return piece

    def _rest(self) -> str:
        """What is still held back when the tokens end: a possible start of a stop string, half a character."""
        held = self._matcher.flush() if self._matcher is not None else ""
        return held + self._detokenizer.flush()

    def _end(self, piece: Piece, parts: list[str], ending: Ending, stop: str | int | None) -> Piece:
        self.ended = True
        piece.text = "".join(parts)
        piece.ending = ending
        piece.stop = stop
        return piece
