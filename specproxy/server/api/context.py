"""What parsing a request needs to know of the served model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from specproxy.errors import InvalidRequest, ModelNotFound
from specproxy.text.template import ChatTemplate
from specproxy.text.tokenizer import Tokenizer
from specproxy.tools.formats import ToolFormat, detect
from specproxy.tools.reasoning import ReasoningFormat, detect_reasoning


@dataclass(frozen=True)
class ApiContext:
    """The served model as requests see it; built once the engine has said hello.

    ``name`` is what answers carry; ``aliases`` are accepted too. ``max_model_len`` bounds prompt and answer together,
    tokens. ``template`` is ``None`` for a base model: it has completions, but no chat. ``form`` and ``reasoning``: how
    the model writes tool calls and thoughts, ``None`` where its template shows none of the known ways.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    name: str
    max_model_len: int
    aliases: tuple[str, ...] = ()
    form: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None

    @classmethod
    def load(
        cls,
        model_dir: Path,
        name: str,
        max_model_len: int,
        aliases: tuple[str, ...] = (),
        *,
        tool_format: str | None = None,
    ) -> ApiContext:
        """Read tokenizer and template of a model folder. ``tool_format``: the form of its tool calls, where the
        template does not show it. Raises ModelLoadError when there is no usable tokenizer, ConfigError for a form that
        is not known."""
        template = ChatTemplate.load(model_dir)
        return cls(
            Tokenizer.load(model_dir),
            template,
            name,
            max_model_len,
            aliases,
            detect(None if template is None else template.tool_source, tool_format),
            detect_reasoning(None if template is None else template.source),
        )

    @cached_property
    def token_ids(self) -> Mapping[str, int]:
        """The markers of tool calls and thoughts that are special tokens."""
        markers = (self.form.markers if self.form else ()) + (self.reasoning.markers if self.reasoning else ())
        ids = {marker: self.tokenizer.inner.token_to_id(marker) for marker in markers}
        return {marker: token for marker, token in ids.items() if token in self.tokenizer.special_ids}

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
