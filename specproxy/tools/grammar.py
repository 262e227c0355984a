"""The grammar of an answer that may, must or must not call tools: llguidance's dialect of Lark.

Calls are written exactly as the family's template writes them, with one space behind commas and colons, as ``tojson``
does: that is what the model was trained on, and what drafters guess best. Arguments follow their function's schema
where a call is forced or the function is strict; otherwise they are any object. In free text the opening marker cannot
be written but as the start of a call, also not spelled out by ordinary tokens, so what the grammar lets pass and what
the reader of calls sees are the same calls.

Each schema is a document of its own (``%json``), so its references keep their meaning. Source of the syntax:
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from specproxy.tools.formats import ARGS_MARKER, ToolFormat
from specproxy.tools.reasoning import ReasoningFormat
from specproxy.tools.request import Function, ToolRequest

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""llguidance's options for JSON as ``json.dumps`` writes it."""

_LENIENT = {"lenient": True, "coerce_one_of": True}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_KNOWN_DRAFT = re.compile(r"https?://json-schema\.org/draft(-0[467]|/2019-09|/2020-12)/schema#?$")
"""Other values of ``$schema`` cannot be looked up, and are left out."""

_SPACE_BEHIND_THOUGHTS = r"/\s{0,4}/"


def answer_grammar(
    form: ToolFormat,
    request: ToolRequest,
    token_ids: Mapping[str, int],
    *,
    reasoning: ReasoningFormat | None = None,
    opened: bool = False,
    content: dict[str, Any] | None = None,
    content_strict: bool = True,
) -> str:
    """The grammar for one answer.

    ``token_ids``: those markers of ``form`` and ``reasoning`` that are special tokens of the tokenizer; the others are
    spelled out. ``reasoning``: how the model thinks before it answers; ``opened``: its prompt ends inside thoughts.
    ``content``: the JSON schema of an answer that calls nothing, where the request asks for one; not
    ``content_strict``: what no grammar can say of it is left to the model, as with functions that are not strict.
    """
    plain = None if content is None else _json_rule(content, strict=content_strict)
    return _Grammar(form, request, token_ids).text(reasoning, opened, plain)


class _Grammar:
    def __init__(self, form: ToolFormat, request: ToolRequest, token_ids: Mapping[str, int]) -> None:
        self._form = form
        self._request = request
        self._ids = token_ids
        self._parallel = request.parallel and form.parallel

    def text(self, reasoning: ReasoningFormat | None, opened: bool, content: str | None) -> str:
        """The whole grammar, rule by rule. ``content``: the rule of an answer that calls nothing, if it is no text."""
        rules = {"answer": self._answer(content)}
        if reasoning is None:
            rules = {"start": "answer"} | rules
        else:
            rules = self._thoughts(reasoning, opened) | rules
        if content is not None:
            rules["content"] = content
        elif self._request.mode != "required":
            rules["TEXT"] = self._free_text()
            if not self._special(self._form.opening) and self._request.mode == "auto":
                rules["text_and_opening[lazy]"] = self._text_and_opening()
        if self._request.mode != "none":
            rules |= self._calls()
        return "".join(f"{name}: {body}\n" for name, body in rules.items())

    def _answer(self, content: str | None) -> str:
        """What may be answered, by the request's mode."""
        plain = "TEXT" if content is None else "content"
        if self._request.mode == "none":
            return plain
        # An object by itself may be a call, unless objects are what plain answers are.
        bare = " | opened" if self._form.layout == "bare" and content is None else ""
        if self._request.mode == "required":
            return f"opening opened{bare}"
        if content is not None:
            return f"{plain} | opening opened"
        head = "TEXT opening" if self._special(self._form.opening) else "text_and_opening"
        return f"{plain} | {head} opened{bare}"

    def _free_text(self) -> str:
        """Text without the opening marker; where a call has none, text that does not begin like a call."""
        text = rf"/(?s:.*)/ & ~/(?s:.*){_regex(self._form.opening)}(?s:.*)/"
        may_begin = self._form.layout != "bare" or self._request.mode == "none"
        return text if may_begin else rf"{text} & /\s*([^{{\s](?s:.*))?/"

    def _text_and_opening(self) -> str:
        first = r"\s*([^{\s](?s:.*))?" if self._form.layout == "bare" else "(?s:.*)"
        return f"/{first}{_regex(self._form.opening)}/"

    def _calls(self) -> dict[str, str]:
        """``opened``: everything behind the first opening marker; and the rules that it needs."""
        form = self._form
        again = " call_again*" if self._parallel else ""
        rules = {"opening": self._marker(form.opening)}
        if form.layout == "list":
            rules["opened"] = f"{_literal(form.before + '[')} call{again} {_literal(']')}"
            rules["call_again"] = f"{_literal(form.between)} call"
        elif form.layout == "bare":
            rules["opened"] = f"call{again}"
            rules["call_again"] = f"{_literal(form.between)} call"
        else:
            rules["opened"] = f"call{again}"
            rules["call_again"] = f"{_literal(form.between)} opening call"
        if not self._parallel:
            del rules["call_again"]
        functions = self._request.callable
        rules["call"] = " | ".join(f"call_{i}" for i in range(len(functions)))
        return rules | {f"call_{i}": self._call(function) for i, function in enumerate(functions)}

    def _call(self, function: Function) -> str:
        """One call, between its markers."""
        form = self._form
        arguments = _json_rule(self._schema(function), strict=function.strict)
        if form.layout == "named":
            return f"{_literal(function.name)} {self._marker(ARGS_MARKER)} {arguments}"
        head = f'{{"name": {json.dumps(function.name)}, "{form.argument_key}": '
        if form.layout != "tagged":
            return f"{_literal(head)} {arguments} {_literal('}')}"
        return f"{_literal(form.before + head)} {arguments} {self._joined('}' + form.after, form.closing)}"

    def _schema(self, function: Function) -> dict[str, Any]:
        forced = self._request.mode == "required"
        return function.parameters if forced or function.strict else _ANY_OBJECT

    def _thoughts(self, reasoning: ReasoningFormat, opened: bool) -> dict[str, str]:
        """Thoughts, which the model may leave out unless the prompt has opened them."""
        closing = _regex(reasoning.closing)
        rules = {"start": "thoughts answer" if opened else "(thinks thoughts)? answer"}
        if not opened:
            rules["thinks"] = self._marker(reasoning.opening)
        if self._special(reasoning.closing):
            rules["thoughts"] = f"THOUGHTS {self._marker(reasoning.closing)} BEHIND"
            rules["THOUGHTS"] = rf"/(?s:.*)/ & ~/(?s:.*){closing}(?s:.*)/"
        else:
            rules["thoughts"] = "thoughts_and_closing BEHIND"
            rules["thoughts_and_closing[lazy]"] = f"/(?s:.*){closing}/"
        return rules | {"BEHIND": _SPACE_BEHIND_THOUGHTS}

    def _special(self, marker: str) -> bool:
        return marker in self._ids

    def _marker(self, marker: str) -> str:
        return f"<[{self._ids[marker]}]>" if marker in self._ids else _literal(marker)

    def _joined(self, text: str, marker: str) -> str:
        """``text`` and a marker; one literal where the marker is spelled out."""
        return f"{_literal(text)} {self._marker(marker)}" if self._special(marker) else _literal(text + marker)


def _json_rule(schema: dict[str, Any], *, strict: bool) -> str:
    """JSON of a schema. Not ``strict``: as far as a grammar can say it."""
    if not _KNOWN_DRAFT.match(str(schema.get("$schema", ""))):
        schema = {key: value for key, value in schema.items() if key != "$schema"}
    options = SPACING if strict else SPACING | _LENIENT
    return f"%json {json.dumps(schema | {'x-guidance': options}, ensure_ascii=False)}"


def _literal(text: str) -> str:
    """``text`` as a literal of the grammar; an empty one is nothing."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def _regex(text: str) -> str:
    """``text`` in a regular expression between slashes."""
    return re.escape(text).replace("/", "\\/")
