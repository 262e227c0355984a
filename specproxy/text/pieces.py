"""From a token's string in the vocabulary to the bytes it stands for.

Two families cover nearly every causal LM, and in both a text's bytes are its tokens' bytes, one after another:

- byte-level BPE (GPT-2, Llama 3, Qwen, DeepSeek): every byte is written as one printable character;
- SentencePiece style (Llama 2, Mistral, Gemma, Phi-3): "▁" is a space, ``<0x0A>`` one byte, all else itself.

Other decoders (WordPiece, CTC) look at a token's neighbours; for them there is no rule here, and text comes from the
tokenizer's own ``decode``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from specproxy.text.layout import flatten

METASPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class PieceRule:
    """How tokens become bytes. ``strips_leading_space``: a text's very first space is not part of it."""

    to_bytes: Callable[[str], bytes]
    strips_leading_space: bool = False


def piece_rule(decoder: dict[str, Any] | None) -> PieceRule | None:
    """The rule that a ``decoder`` entry of tokenizer.json follows; ``None`` where bytes depend on neighbours."""
    steps = flatten(decoder, "decoders")
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return PieceRule(_byte_level(byte_alphabet()))
    if not kinds or not kinds <= {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}:
        return None
    replaced = [step for step in steps if step["type"] in ("Replace", "Metaspace")]
    stripped = [step for step in steps if step["type"] == "Strip"]
    if len(replaced) != 1 or not all(_replaces_metaspace(step) for step in replaced):
        return None
    if not all((step.get("content"), step.get("start"), step.get("stop")) == (" ", 1, 0) for step in stripped):
        return None
    metaspace_strips = replaced[0]["type"] == "Metaspace" and replaced[0].get("prepend_scheme") != "never"
    return PieceRule(_sentencepiece(byte_fallback="ByteFallback" in kinds), metaspace_strips or bool(stripped))


def byte_alphabet() -> dict[str, int]:
    """The byte-level alphabet, character to byte: printable Latin-1 bytes are themselves, the others follow U+0100.

    Source: ``bytes_to_unicode`` of GPT-2's encoder.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _byte_level(alphabet: dict[str, int]) -> Callable[[str], bytes]:
    def to_bytes(piece: str) -> bytes:
        # A token with any character outside the alphabet (added tokens such as "<｜end｜>") stands for itself.
        known = [alphabet.get(char) for char in piece]
        return piece.encode() if None in known else bytes(byte for byte in known if byte is not None)

    return to_bytes


def _sentencepiece(*, byte_fallback: bool) -> Callable[[str], bytes]:
    def to_bytes(piece: str) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(piece) if byte_fallback else None
        return bytes([int(byte[1], 16)]) if byte else piece.replace(METASPACE, " ").encode()

    return to_bytes


def _replaces_metaspace(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step.get("replacement", METASPACE) == METASPACE)
    return bool(step.get("pattern") == {"String": METASPACE} and step.get("content") == " ")
