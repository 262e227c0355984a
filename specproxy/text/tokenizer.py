"""The target's tokenizer, read from its folder. No model library: the server never imports torch.

What it does not know: tokenizers that are Python code, and folders with a SentencePiece file alone; both need a
``tokenizer.json`` beside them (transformers writes one with ``save_pretrained``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from specproxy.errors import ModelLoadError
from specproxy.text.layout import TokenizerLayout
from specproxy.text.pieces import PieceRule, piece_rule

ABSURD_LENGTH = 10**9
"""transformers writes 10^30 for a tokenizer that knows no limit."""

SHRINKAGE = 8
"""Characters that one character after normalisation may stand for; compositions of NFC have four at most."""


@dataclass(frozen=True)
class TokenView:
    """A token as answers show it: exact bytes, and a text, escaped byte by byte where they are not UTF-8 by themselves.

    ``is_text`` says whether they are.
    """

    text: str
    data: bytes
    is_text: bool


class Tokenizer:
    """Text to ids and back. Thread-safe.

    ``vocab_size`` is one more than the highest id. ``model_max_length`` in tokens, ``None`` where the folder names no
    sensible one. ``eos_token_ids``: generation_config.json's, or else those of the other configurations.
    ``special_ids`` are left out of text by default. ``rule`` is ``None`` for a decoder that looks at neighbours.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        rule: PieceRule | None,
        *,
        keeps_text: bool = False,
        eos_token_ids: tuple[int, ...] = (),
        model_max_length: int | None = None,
    ) -> None:
        self.inner = inner
        self.rule = rule
        self.eos_token_ids = eos_token_ids
        self.model_max_length = model_max_length
        added = inner.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self.vocab_size = max([inner.get_vocab_size(with_added_tokens=False), *(token + 1 for token in added)])
        self._longest = SHRINKAGE * max(map(len, inner.get_vocab()), default=1) if keeps_text else 0
        self._views: dict[int, TokenView] = {}

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """Read ``tokenizer.json`` and the configurations beside it. Raises ModelLoadError."""
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise ModelLoadError(f"{model_dir}: no tokenizer.json; transformers' save_pretrained writes one")
        try:
            layout = msgspec.json.decode(path.read_bytes(), type=TokenizerLayout)
            inner = tokenizers.Tokenizer.from_file(str(path))
            rule = piece_rule(layout.decoder)
        except Exception as error:  # noqa: BLE001 - the library raises exactly that for every fault of the file
            raise ModelLoadError(f"{path}: not a tokenizer that can be read: {error}") from None
        inner.no_truncation()
        inner.no_padding()
        config = read_json(model_dir / "tokenizer_config.json")
        limit = config.get("model_max_length")
        return cls(
            inner,
            rule,
            keeps_text=layout.keeps_text(),
            eos_token_ids=_eos_ids(model_dir, config, inner),
            model_max_length=int(limit) if isinstance(limit, int | float) and 0 < limit < ABSURD_LENGTH else None,
        )

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of ``text``; ``special`` adds what the tokenizer puts around a text, such as a BOS token.

        Special tokens written out in ``text`` become those tokens, as chat templates need it.
        """
        ids: list[int] = self.inner.encode(text, add_special_tokens=special).ids
        return ids

    def least_tokens(self, text: str) -> int:
        """How many tokens ``text`` has at least, found without tokenising: a quick no to what is far too long."""
        return len(text) // self._longest if self._longest else 0

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ``ids``, whole, by the tokenizer's own decoder."""
        return self.inner.decode(list(ids), skip_special_tokens=skip_special)

    def token_bytes(self, token: int) -> bytes:
        """Exact bytes of one token; none for an id that the vocabulary does not have."""
        return self.view(token).data

    def view(self, token: int) -> TokenView:
        """One token as answers show it; each is worked out once."""
        view = self._views.get(token)
        if view is None:
            view = self._views[token] = self._look(token)
        return view

    def _look(self, token: int) -> TokenView:
        piece = self.inner.id_to_token(token)
        if piece is None:
            return TokenView("", b"", True)
        data = (
            self.rule.to_bytes(piece) if self.rule else self.inner.decode([token], skip_special_tokens=False).encode()
        )
        try:
            return TokenView(data.decode(), data, True)
        except UnicodeDecodeError:
            return TokenView("".join(f"\\x{byte:02x}" for byte in data), data, False)


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file of a model folder; empty if there is none. Raises ModelLoadError if it is broken."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path}: not a JSON object: {error}") from None


def special_token_text(entry: object) -> str | None:
    """The text of a special token in tokenizer_config.json: a string, or an object with ``content``."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) and text else None


def _eos_ids(model_dir: Path, config: dict[str, Any], inner: tokenizers.Tokenizer) -> tuple[int, ...]:
    declared = read_json(model_dir / "generation_config.json").get("eos_token_id")
    if declared is None:
        declared = read_json(model_dir / "config.json").get("eos_token_id")
    ids = [token for token in (declared if isinstance(declared, list) else [declared]) if isinstance(token, int)]
    text = special_token_text(config.get("eos_token"))
    own = inner.token_to_id(text) if text else None
    return tuple(dict.fromkeys([*ids, own] if own is not None else ids))
