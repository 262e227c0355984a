"""Which decoders stand for bytes, and what their tokens are."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import pre_tokenizers

from specproxy.text.pieces import byte_alphabet, piece_rule

REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FALLBACK = {"type": "ByteFallback"}
FUSE = {"type": "Fuse"}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    """A decoder of several steps."""
    return {"type": "Sequence", "decoders": list(steps)}


def test_alphabet_is_the_librarys() -> None:
    """The byte-level alphabet has the characters that the library uses, one for each byte."""
    alphabet = byte_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))


@pytest.mark.parametrize(
    ("decoder", "piece", "data"),
    [
        ({"type": "ByteLevel"}, "Ġé", b" \xe9"),
        ({"type": "ByteLevel"}, "<｜end｜>", "<｜end｜>".encode()),
        (sequence({"type": "ByteLevel"}), "Ċ", b"\n"),
        (sequence(REPLACE, FALLBACK, FUSE), "▁a", b" a"),
        (sequence(REPLACE, FALLBACK, FUSE), "<0xE9>", b"\xe9"),
        (sequence(REPLACE, FUSE), "<0xE9>", b"<0xE9>"),
        (sequence(REPLACE, FALLBACK, FUSE), "<0xE9", b"<0xE9"),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}, "▁a", b" a"),
    ],
)
def test_bytes_of_a_piece(decoder: dict[str, Any], piece: str, data: bytes) -> None:
    """A token's string gives its bytes by the rule of its family."""
    rule = piece_rule(decoder)
    assert rule is not None
    assert rule.to_bytes(piece) == data


@pytest.mark.parametrize(
    ("decoder", "strips"),
    [
        (sequence(REPLACE, FALLBACK, FUSE), False),
        (sequence(REPLACE, FALLBACK, FUSE, STRIP), True),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}, True),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}, False),
        ({"type": "ByteLevel"}, False),
    ],
)
def test_leading_space(decoder: dict[str, Any], strips: bool) -> None:
    """Whether the very first space of a text belongs to it is the decoder's word."""
    rule = piece_rule(decoder)
    assert rule is not None
    assert rule.strips_leading_space == strips


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "CTC"},
        sequence({"type": "ByteLevel"}, STRIP),
        sequence(FALLBACK, FUSE),
        sequence(REPLACE | {"content": "_"}, FUSE),
        sequence(REPLACE, FUSE, STRIP | {"stop": 1}),
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never"},
    ],
)
def test_everything_else_has_no_rule(decoder: dict[str, Any] | None) -> None:
    """A decoder that is not known to be context-free is left to the library."""
    assert piece_rule(decoder) is None
