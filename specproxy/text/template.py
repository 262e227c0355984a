"""The model's chat template, rendered in a sandbox.

The environment is the one that templates are written for: transformers' ``apply_chat_template``, with its trimming of
blocks, loop controls, ``tojson`` that leaves HTML alone, ``raise_exception``, ``strftime_now`` and the ``generation``
tag. Compiled once, at load.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from specproxy.errors import InvalidRequest, ModelLoadError
from specproxy.text.tokenizer import read_json, special_token_text

_END_MARK = "SPECPROXY_END_OF_FINAL_MESSAGE "
"""Put behind the final message to find its end in the rendered text. The space at its end shows whether the template
trims messages."""


_TEMPLATE_FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What a program trips over when its input is not what it expects."""


class _GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's words for training; here its body is all that matters."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The nodes inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled chat template. ``variables`` are always defined for it: the tokenizer's special tokens by name.

    ``source``: what it was compiled from; ``tool_source``: what conversations with tools are written by.
    """

    def __init__(self, source: str, *, tool_source: str | None = None, variables: dict[str, str] | None = None) -> None:
        self.source = source
        self.tool_source = tool_source or source
        environment = _environment()
        self._template = environment.from_string(source)
        self._tool_template = environment.from_string(tool_source) if tool_source else self._template
        self._knows_developer = "developer" in source
        self._variables = variables or {}

    @classmethod
    def load(cls, model_dir: Path) -> ChatTemplate | None:
        """Read and compile the folder's template; ``None`` if it has none. Raises ModelLoadError if it is broken."""
        config = read_json(model_dir / "tokenizer_config.json")
        file = model_dir / "chat_template.jinja"
        declared: object = file.read_text("utf-8") if file.is_file() else config.get("chat_template")
        named = _named(declared)
        if "default" not in named:
            return None
        variables = {
            name: text
            for name, entry in config.items()
            if name.endswith("_token") and (text := special_token_text(entry)) is not None
        }
        try:
            return cls(named["default"], tool_source=named.get("tool_use"), variables=variables)
        except jinja2.TemplateError as error:
            raise ModelLoadError(f"{model_dir}: the chat template does not compile: {error}") from None

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> str:
        """The prompt's text. ``kwargs`` are further variables for the template.

        The role ``developer`` becomes ``system`` where the template does not know it. Raises InvalidRequest when the
        template refuses the conversation.
        """
        if not self._knows_developer:
            messages = [m | {"role": "system"} if m.get("role") == "developer" else m for m in messages]
        if continue_final_message:
            final = messages[-1]
            messages = [*messages[:-1], final | {"content": f"{final.get('content') or ''}{_END_MARK}"}]
        template = self._tool_template if tools else self._template
        try:
            text = template.render(
                self._variables
                | (kwargs or {})
                | {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
            )
        except (jinja2.TemplateError, *_TEMPLATE_FAULTS) as error:
            raise InvalidRequest(f"the chat template refuses this conversation: {error}", param="messages") from None
        return _cut_at_mark(text) if continue_final_message else text


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own escapes HTML, which would put entities into prompts."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)


def _named(declared: object) -> dict[str, str]:
    """Templates by name: one string is the default; a list has ``{name, template}`` entries."""
    if isinstance(declared, str):
        return {"default": declared}
    entries = declared if isinstance(declared, list) else []
    return {
        entry["name"]: entry["template"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
    }


def _cut_at_mark(text: str) -> str:
    """The text up to the end of the final message. Raises InvalidRequest when the template left the message out."""
    end = text.rfind(_END_MARK.rstrip())
    if end < 0:
        raise InvalidRequest(
            "the chat template does not show the final message, so it cannot be continued",
            param="continue_final_message",
        )
    # Where the template trims messages it took the mark's space; without the mark it had taken the message's own.
    return text[:end] if text.startswith(_END_MARK, end) else text[:end].rstrip()
