"""What tokenizer.json says of how text and tokens correspond, without building the tokenizer."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

_GENTLE_NORMALIZERS = {"Prepend", "Replace", "NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
"""They shorten a text by a small factor at most; others (strip, accents) may remove all of it."""

_WHOLE_PRE_TOKENIZERS = {"ByteLevel", "Split", "Metaspace", "Digits", "Punctuation"}
"""They only cut, unless their behaviour is ``Removed``; others drop the spaces."""


class ModelEntry(Struct):
    """The ``model`` entry, without its vocabulary."""

    type: str = ""
    byte_fallback: bool = False


class AddedEntry(Struct):
    """One of ``added_tokens``."""

    lstrip: bool = False
    rstrip: bool = False


class TokenizerLayout(Struct):
    """The entries that matter here."""

    model: ModelEntry
    added_tokens: list[AddedEntry] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None

    def keeps_text(self) -> bool:
        """Whether every character of a text ends up in some token, up to a small factor.

        So that a text's length bounds its tokens from below. False wherever that is not certain.
        """
        cuts = flatten(self.pre_tokenizer, "pretokenizers")
        byte_complete = any(cut["type"] == "ByteLevel" for cut in cuts) or self.model.byte_fallback
        return (
            self.model.type == "BPE"
            and byte_complete
            and all(step["type"] in _GENTLE_NORMALIZERS for step in flatten(self.normalizer, "normalizers"))
            and all(cut["type"] in _WHOLE_PRE_TOKENIZERS and cut.get("behavior") != "Removed" for cut in cuts)
            and not any(token.lstrip or token.rstrip for token in self.added_tokens)
        )


def flatten(entry: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of an entry that may be a ``Sequence`` with its steps under ``key``."""
    if entry is None:
        return []
    if entry["type"] == "Sequence":
        return [step for inner in entry[key] for step in flatten(inner, key)]
    return [entry]
