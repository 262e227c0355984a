"""Logprobs in OpenAI's two forms: the chat one, and the older one of completions."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from msgspec import Struct

from specproxy.errors import EngineFailed
from specproxy.text.tokenizer import Tokenizer
from specproxy.vocabulary import TokenLogprob

FLOOR = -9999.0
"""What OpenAI writes for a token that cannot be; JSON has no infinity."""


class TopToken(Struct):
    """One alternative. ``bytes``: the token's own, which ``token`` shows escaped where they are no text."""

    token: str
    bytes: list[int]
    logprob: float


class TokenEntry(Struct):
    """One token of the answer with its best alternatives."""

    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TopToken]


class ChatLogprobs(Struct):
    """``logprobs`` of a chat choice: one entry for every counted token, the one that ended the answer included."""

    content: list[TokenEntry]
    refusal: None = None


class LegacyLogprobs(Struct):
    """``logprobs`` of a completion choice: parallel lists. ``text_offset`` in characters of the choice's text.

    ``top_logprobs`` always has the token itself beside the best. A prompt's first token has neither.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    def __add__(self, other: LegacyLogprobs) -> LegacyLogprobs:
        return LegacyLogprobs(
            self.tokens + other.tokens,
            self.token_logprobs + other.token_logprobs,
            self.top_logprobs + other.top_logprobs,
            self.text_offset + other.text_offset,
        )


def chat_logprobs(tokenizer: Tokenizer, entries: Iterable[TokenLogprob]) -> ChatLogprobs:
    """Of the tokens in ``entries``."""
    content = []
    for entry in entries:
        view = tokenizer.view(entry.token)
        top = [_top(tokenizer, token, logprob) for token, logprob in entry.top]
        content.append(TokenEntry(view.text, list(view.data), max(entry.logprob, FLOOR), top))
    return ChatLogprobs(content)


def legacy_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob], offsets: list[int]) -> LegacyLogprobs:
    """Of the tokens in ``entries``, which start at ``offsets``."""
    return LegacyLogprobs(
        [_legacy_text(tokenizer, entry.token) for entry in entries],
        [max(entry.logprob, FLOOR) for entry in entries],
        [_alternatives(tokenizer, entry) for entry in entries],
        offsets,
    )


def echo_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], entries: Sequence[TokenLogprob], text: str
) -> LegacyLogprobs:
    """Of a prompt that is echoed as ``text``. ``entries``: one for every token but the first, or EngineFailed."""
    if len(entries) != len(ids) - 1:
        raise EngineFailed(f"the engine sent {len(entries)} logprobs for a prompt of {len(ids)} tokens")
    first = LegacyLogprobs([_legacy_text(tokenizer, ids[0])], [None], [None], [])
    both = first + legacy_logprobs(tokenizer, entries, [])
    both.text_offset = _prompt_offsets(tokenizer, ids, text)
    return both


def _prompt_offsets(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[int]:
    """Where each token of a prompt starts in its text. Special tokens that the text does not show have no length."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets = []
    chars = 0
    for token in ids:
        offsets.append(chars)
        view = tokenizer.view(token)
        if token in tokenizer.special_ids:
            chars += len(view.text) if text.startswith(view.text, chars) else 0
            continue
        piece = decoder.decode(view.data)
        # Some tokenizers put a space before a text; it is in the first token and not in the text.
        invented = chars == 0 and piece.startswith(" ") and not text.startswith(" ")
        chars += len(piece) - invented
    return offsets


def _top(tokenizer: Tokenizer, token: int, logprob: float) -> TopToken:
    view = tokenizer.view(token)
    return TopToken(view.text, list(view.data), max(logprob, FLOOR))


def _alternatives(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, float]:
    """By text. Of tokens with the same text the likeliest stays, but the chosen one always."""
    best: dict[str, float] = {}
    for token, logprob in entry.top:
        best.setdefault(_legacy_text(tokenizer, token), max(logprob, FLOOR))
    best[_legacy_text(tokenizer, entry.token)] = max(entry.logprob, FLOOR)
    return best


def _legacy_text(tokenizer: Tokenizer, token: int) -> str:
    """A token that is no text by itself is written ``bytes:`` and its bytes, so that two of them stay apart."""
    view = tokenizer.view(token)
    return view.text if view.is_text else f"bytes:{view.text}"
