"""What parsing a request needs to know of the served model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specproxy.errors import InvalidRequest, ModelNotFound
from specproxy.text.template import ChatTemplate
from specproxy.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ApiContext:
    """The served model as requests see it; built once the engine has said hello.

    ``name`` is what answers carry; ``aliases`` are accepted too. ``max_model_len`` bounds prompt and answer together,
    tokens. ``template`` is ``None`` for a base model: it has completions, but no chat.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    name: str
    max_model_len: int
    aliases: tuple[str, ...] = ()

    @classmethod
    def load(cls, model_dir: Path, name: str, max_model_len: int, aliases: tuple[str, ...] = ()) -> ApiContext:
        """Read tokenizer and template of a model folder. Raises ModelLoadError when there is no usable tokenizer."""
        return cls(Tokenizer.load(model_dir), ChatTemplate.load(model_dir), name, max_model_len, aliases)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a request may use, the answer's own first."""
        return (self.name, *(alias for alias in self.aliases if alias != self.name))

    def resolve(self, model: str | None) -> str:
        """The name answers carry for a requested ``model``. Raises InvalidRequest for none, ModelNotFound."""
        if not model:
            raise InvalidRequest("you must provide a model parameter", param="model")
        if model not in self.names:
            known = ", ".join(self.names)
            raise ModelNotFound(f"The model `{model}` does not exist here; served: {known}", param="model")
        return self.name
