"""How model families write tool calls, as data.

Sources: the chat templates of the families' own releases. A family is recognised by what its template writes; the
white space around calls is taken from there as well, since it differs among releases of one family.

What it does not know: forms that are not JSON (Qwen3-Coder, GLM, MiniMax), Kimi's, DeepSeek's and gpt-oss's. Their
templates are recognised as none of these, and tools are then refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from specproxy.errors import ConfigError, InvalidRequest

Layout = Literal["tagged", "bare", "list", "named"]
"""tagged: each call in a pair of markers. bare: a JSON object by itself, where the answer begins. list: one JSON array
behind a marker. named: marker, name, marker, arguments."""

ARGS_MARKER = "[ARGS]"
CALL_ID_MARKER = "[CALL_ID]"
"""Inside a call of layout ``named``; the second is optional, and only some releases write it."""

ARGUMENT_KEYS = ("arguments", "parameters")
"""Read alike in every family, as models mix them up."""


class ToolFormat(Struct, frozen=True, kw_only=True):
    """One form of tool calls.

    ``opening``: the marker in front of a call, or of all of them; in layout ``bare`` it may be missing. ``closing``:
    the one behind a call, if there is one. ``before`` and ``after``: white space between markers and JSON; ``between``:
    what stands between two calls. ``argument_key``: the name of the arguments in the call's JSON. ``parallel``: the
    family can make several calls in one answer. ``id_length``: what its template demands of a call's id (alphanumeric,
    0: anything goes). ``arguments_as_text``: its template prints arguments as they are given, so they must be JSON.
    """

    name: str
    layout: Layout
    opening: str
    closing: str = ""
    before: str = ""
    after: str = ""
    between: str = ""
    argument_key: Literal["arguments", "parameters"] = "arguments"
    parallel: bool = True
    id_length: int = 0
    arguments_as_text: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Every marker. Where they are special tokens, detokenizing must not leave them out."""
        inner = (ARGS_MARKER, CALL_ID_MARKER) if self.layout == "named" else ()
        return tuple(marker for marker in (self.opening, self.closing, *inner) if marker)


_HOUSE = ToolFormat(name="house", layout="tagged", opening="<tool_call>", closing="</tool_call>")

FORMATS: dict[str, ToolFormat] = {
    known.name: known
    for known in (
        replace(_HOUSE, name="hermes", before="\n", after="\n", between="\n"),
        _HOUSE,
        ToolFormat(name="llama3", layout="bare", opening="<|python_tag|>", between="; ", argument_key="parameters"),
        ToolFormat(name="mistral", layout="list", opening="[TOOL_CALLS]", between=", ", id_length=9),
        ToolFormat(name="mistral-named", layout="named", opening="[TOOL_CALLS]", id_length=9),
    )
}
"""By name, as ``detect`` finds them and an override names them. ``hermes`` is Qwen's form too."""

_NOT_JSON = ("<function=", "<arg_key>", "<TOOLCALL>")
"""Marks of families that put something else between markers like these."""


def detect(template: str | None, override: str | None = None) -> ToolFormat | None:
    """The form that a chat template's source writes, ``None`` where it is none of the known.

    ``override`` names a form instead; white space and arguments still follow the template, where that has this form.
    Raises ConfigError for a name that is not known.
    """
    source = template or ""
    found = _found(source)
    if override is None:
        return found
    if override not in FORMATS:
        raise ConfigError(f"tool format {override!r} is not known; choose one of {_choices()}")
    return found if found is not None and found.name == override else FORMATS[override]


def require_format(form: ToolFormat | None, model: str) -> ToolFormat:
    """``form``, for a request with tools. Raises InvalidRequest where the model has none."""
    if form is None:
        raise InvalidRequest(
            f"tools cannot be offered to `{model}`: its chat template shows none of the forms of tool calls known here"
            f" ({_choices()}). If it was trained on one of them, name that form by model.tool_format.",
            param="tools",
            code="tools_not_supported",
        )
    return form


def _found(source: str) -> ToolFormat | None:
    if any(mark in source for mark in _NOT_JSON):
        return None
    form = _family(source)
    return None if form is None else replace(form, arguments_as_text="tojson" not in source)


def _family(source: str) -> ToolFormat | None:
    if "[TOOL_CALLS]" in source:
        if ARGS_MARKER in source:
            return FORMATS["mistral-named"]
        return replace(FORMATS["mistral"], before=" " if "[TOOL_CALLS] [" in source else "")
    if "<tool_call>" in source:
        return FORMATS["hermes" if _contains(source, ("<tool_call>\n", "<tool_call>\\n")) else "house"]
    if "<|start_header_id|>" in source and '"parameters": ' in source:
        return replace(FORMATS["llama3"], parallel="single tool-calls" not in source)
    return None


def _contains(source: str, wanted: Iterable[str]) -> bool:
    return any(text in source for text in wanted)


def _choices() -> str:
    return ", ".join(FORMATS)
