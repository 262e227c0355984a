"""Tokens to text, one at a time, without ever showing half a character.

Both classes have the same two methods and the same promise: what ``push`` returns depends on the tokens pushed before,
not on when or in what groups they came, and all pieces with ``flush`` at the end make up the whole text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from specproxy.text.pieces import PieceRule
from specproxy.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"

PREFIX_TOKENS = 5
"""Tokens of the prompt that a decoder sees before the first generated one, so that it knows about the space there."""

MAX_HELD = 16
"""Tokens that may wait for the rest of a character. No character needs as many; it bounds the work on nonsense."""


class Detokenizer(Protocol):
    """Text of one sequence, in pieces."""

    def push(self, token: int) -> str:
        """The text that ``token`` completes; empty while a character is incomplete."""
        ...

    def flush(self) -> str:
        """What is left at the end: an incomplete character, as U+FFFD."""
        ...


def detokenizer_for(
    tokenizer: Tokenizer, prompt: Sequence[int], *, skip_special: bool = True, kept: frozenset[int] = frozenset()
) -> Detokenizer:
    """The detokenizer for what follows ``prompt``. ``kept``: special tokens that are not skipped with the others."""
    if tokenizer.rule is not None:
        return ByteDetokenizer(tokenizer, tokenizer.rule, prompt, skip_special=skip_special, kept=kept)
    return WindowDetokenizer(tokenizer, prompt, skip_special=skip_special, kept=kept)


class ByteDetokenizer:
    """For tokens that are bytes: a UTF-8 decoder fed token by token. O(new bytes), about half a microsecond a token."""

    __slots__ = ("_decoder", "_skipped", "_strip", "_tokenizer")

    def __init__(
        self,
        tokenizer: Tokenizer,
        rule: PieceRule,
        prompt: Sequence[int],
        *,
        skip_special: bool = True,
        kept: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._skipped = _skipped(tokenizer, skip_special, kept)
        # After text the space before the first word is real; where nothing precedes it the decoder drops it.
        self._strip = rule.strips_leading_space and all(token in tokenizer.special_ids for token in prompt)

    def push(self, token: int) -> str:
        """The text that ``token`` completes."""
        if token in self._skipped:
            return ""
        data = self._tokenizer.view(token).data
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The incomplete character at the end, if any, as U+FFFD."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For decoders that look at neighbours: decode a short window with and without the new token, and compare.

    The window starts with tokens whose text is out already, so that the decoder treats the new ones as it would in
    mid-text. Two decodes of a few tokens each per token. Source: the prefix and read offsets of Hugging Face's TGI.
    """

    __slots__ = ("_known", "_num_known", "_skipped", "_tokenizer", "_window")

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        skip_special: bool = True,
        kept: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = _skipped(tokenizer, skip_special, kept)
        self._window: list[int] = [token for token in prompt[-PREFIX_TOKENS:] if token not in self._skipped]
        self._num_known = len(self._window)
        self._known = self._decode(self._window)

    def push(self, token: int) -> str:
        """The text that ``token`` completes."""
        if token in self._skipped:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        waiting = text.endswith(REPLACEMENT) and len(self._window) - self._num_known < MAX_HELD
        if waiting or len(text) <= len(self._known):
            return ""
        new = text[len(self._known) :]
        self._window = self._window[self._num_known :]
        self._num_known = len(self._window)
        self._known = self._decode(self._window)
        return new

    def flush(self) -> str:
        """What the window still holds back."""
        new = self._decode(self._window)[len(self._known) :]
        self._known += new
        return new

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=False)


def _skipped(tokenizer: Tokenizer, skip_special: bool, kept: frozenset[int]) -> frozenset[int]:
    """Tokens that have no text."""
    if not skip_special:
        return frozenset()
    return tokenizer.special_ids - kept if kept else tokenizer.special_ids
