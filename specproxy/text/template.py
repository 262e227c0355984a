"""The model's chat template, rendered in a sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class ChatTemplate:
    """A compiled chat template."""

    @classmethod
    def load(cls, model_dir: Path) -> ChatTemplate | None:
        """Read and compile the folder's template; ``None`` if it has none. Raises ModelLoadError if it is broken."""
        raise NotImplementedError

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> str:
        """The prompt's text. Raises InvalidRequest when the template refuses the conversation."""
        raise NotImplementedError
