"""Incremental text against the library's decode of the whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.text.detokenizer import ByteDetokenizer, WindowDetokenizer, detokenizer_for
from specproxy.text.tokenizer import Tokenizer

tokens = st.lists(st.integers(0, 8191), max_size=40)


def pieces_of(tokenizer: Tokenizer, prompt: list[int], ids: list[int], *, skip_special: bool = True) -> list[str]:
    """Every piece, the flushed one last."""
    detokenizer = detokenizer_for(tokenizer, prompt, skip_special=skip_special)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@settings(max_examples=300, deadline=None)
@given(ids=tokens, skip=st.booleans())
def test_byte_level_equals_decode(house: Tokenizer, ids: list[int], skip: bool) -> None:
    """Pieces of any tokens, malformed UTF-8 included, make up exactly what the library decodes."""
    assert "".join(pieces_of(house, [1], ids, skip_special=skip)) == house.decode(ids, skip_special=skip)


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_no_half_characters(house: Tokenizer, text: str) -> None:
    """While a character is incomplete nothing of it is shown."""
    pieces = pieces_of(house, [1], house.encode(text, special=False), skip_special=False)
    assert "".join(pieces) == text
    assert all(piece in text for piece in pieces)


def test_half_character_at_the_end(house: Tokenizer) -> None:
    """A character that never completes comes out of flush as U+FFFD."""
    first = house.encode("\U0001f600", special=False)[0]
    assert pieces_of(house, [], [first]) == ["", "\ufffd"]


def test_special_tokens_are_dropped_or_shown(house: Tokenizer) -> None:
    """Special tokens are no text unless asked for."""
    assert pieces_of(house, [], [2]) == ["", ""]
    assert pieces_of(house, [], [2], skip_special=False) == ["<|im_end|>", ""]


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="abc .é日\U0001f600\n", min_size=1))
def test_metaspace_after_text(metaspace: Tokenizer, text: str) -> None:
    """After a prompt the space before the first word is kept."""
    ids = metaspace.encode(text, special=False)
    assert "".join(pieces_of(metaspace, [1, *metaspace.encode("c", special=False)], ids)) == " " + text


def test_metaspace_at_the_start(metaspace: Tokenizer) -> None:
    """After special tokens alone it is dropped, as the library's decode does."""
    ids = metaspace.encode("ab a", special=False)
    assert "".join(pieces_of(metaspace, [1], ids)) == metaspace.decode(ids) == "ab a"


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 7), max_size=20))
def test_window_equals_decode(wordpiece: Tokenizer, ids: list[int]) -> None:
    """A decoder that looks at neighbours gives in pieces what it gives as a whole."""
    prompt = wordpiece.encode("the", special=False)
    whole = wordpiece.decode(prompt + ids)
    assert "the" + "".join(pieces_of(wordpiece, prompt, ids)) == whole


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet="ab é\U0001f600"))
def test_both_ways_agree(house: Tokenizer, text: str) -> None:
    """The window way and the byte way give the same text and hold back the same characters."""
    ids = house.encode(text, special=False)
    window = WindowDetokenizer(house, [1])
    assert [*(window.push(token) for token in ids), window.flush()] == pieces_of(house, [1], ids)


def test_window_gives_up_on_nonsense(house: Tokenizer) -> None:
    """Bytes that never become a character do not pile up in the window."""
    window = WindowDetokenizer(house, [1])
    lone = next(token for token in range(house.vocab_size) if house.token_bytes(token) == b"\x80")
    text = "".join(window.push(lone) for _ in range(100)) + window.flush()
    assert text == "\ufffd" * 100


@pytest.mark.parametrize("family", ["house", "metaspace"])
def test_known_families_take_the_byte_way(request: pytest.FixtureRequest, family: str) -> None:
    """Byte-level and SentencePiece-like tokenizers never need the window."""
    assert isinstance(detokenizer_for(request.getfixturevalue(family), []), ByteDetokenizer)
