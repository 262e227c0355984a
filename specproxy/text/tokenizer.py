"""The target's tokenizer, read from its folder. No model library: the server never imports torch."""

from __future__ import annotations

from pathlib import Path


class Tokenizer:
    """Text to ids and back. Thread-safe."""

    vocab_size: int
    model_max_length: int | None
    eos_token_ids: tuple[int, ...]

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """Read ``tokenizer.json`` and its configuration. Raises ModelLoadError."""
        raise NotImplementedError

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of ``text``; ``special`` adds what the tokenizer puts around a text, such as a BOS token."""
        raise NotImplementedError

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """Text of ``ids``, whole."""
        raise NotImplementedError

    def token_bytes(self, token: int) -> bytes:
        """Exact bytes of one token."""
        raise NotImplementedError
