"""Tools and thoughts in chat: the grammar that keeps an answer to what was asked for, and how its text is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from specproxy.errors import InvalidRequest
from specproxy.server.api.context import ApiContext
from specproxy.structured.grammars import grammar_fault
from specproxy.structured.schemas import ANY_OBJECT, AnswerSchema, compile_schema
from specproxy.text.assembler import Ending
from specproxy.tools.calls import ToolParser
from specproxy.tools.events import CallBegins, CallEnds, Event, Malformed
from specproxy.tools.formats import ToolFormat, require_format
from specproxy.tools.grammar import answer_grammar
from specproxy.tools.history import make_call_id
from specproxy.tools.parser import AnswerParser
from specproxy.tools.reasoning import ReasoningFormat, ReasoningParser
from specproxy.tools.request import ToolRequest, read_tools
from specproxy.tools.shapes import finish_reason

MAX_HELD_BYTES = 256 * 1024
"""Of all schemas that one answer may be held to, as JSON; ``structured/schemas.py`` says what they cost."""

CallVerdict = Literal["well-formed", "malformed", "truncated"]


@dataclass(frozen=True)
class Reading:
    """How the text of an answer is read: first its thoughts, then its calls, where it may have them.

    ``tools``: what may be called, with ``form``; ``opened``: the prompt ends inside thoughts. ``kept``: special tokens
    whose text is needed for it.
    """

    tools: ToolRequest | None
    form: ToolFormat | None
    reasoning: ReasoningFormat | None
    opened: bool
    kept: frozenset[int]

    @property
    def legacy(self) -> bool:
        """Whether calls are answered in the older form."""
        return self.tools is not None and self.tools.legacy

    def reader(self, answer_id: str, index: int) -> AnswerReader:
        """Reads choice ``index``."""
        thoughts = None if self.reasoning is None else ReasoningParser(self.reasoning, opened=self.opened)
        calls = None
        if self.tools is not None and self.form is not None:
            make_id: Callable[[int], str] = partial(make_call_id, self.form, answer_id, index)
            calls = ToolParser(self.form, self.tools.allowed, make_id, constrained=True)
        return AnswerReader(AnswerParser(thoughts, calls), legacy=self.legacy)


@dataclass
class AnswerReader:
    """One choice's text as events. ``verdicts``: of every call so far; ``faults``: what was wrong with some of them."""

    parser: AnswerParser
    legacy: bool
    calls: bool = False
    verdicts: list[CallVerdict] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def push(self, text: str, *, ended: bool) -> list[Event]:
        """What ``text`` adds that is to be shown; with ``ended`` also what was held back."""
        shown = self._judged(self.parser.push(text), "malformed")
        return shown + self._judged(self.parser.flush(), "truncated") if ended else shown

    def finish_reason(self, ending: Ending) -> str:
        """What the choice says of its end. Calls are to be answered only where all of them are whole."""
        whole = self.verdicts.count("well-formed")
        return finish_reason(ending, whole if whole == len(self.verdicts) else 0, legacy=self.legacy)

    def _judged(self, events: list[Event], broken: CallVerdict) -> list[Event]:
        for event in events:
            self.calls |= isinstance(event, CallBegins)
            if isinstance(event, CallEnds | Malformed):
                self.verdicts.append(broken if event.fault else "well-formed")
                self.faults += [event.fault] if event.fault else []
        return [event for event in events if not isinstance(event, CallEnds)]


def requested_tools(given: Mapping[str, Any], context: ApiContext) -> ToolRequest | None:
    """The tools that a body offers, ``None`` where it offers none. Raises InvalidRequest naming the field, also where
    the model has no known form of calls."""
    tools = read_tools(given)
    if tools is not None:
        require_format(context.form, context.name)
    return tools


def tool_grammar(
    context: ApiContext,
    tools: ToolRequest,
    prompt: str,
    schema: AnswerSchema | None,
    response_format: dict[str, Any] | None,
) -> str:
    """The grammar of an answer to ``prompt`` that may call, or may not. ``schema``: what it has to be where it calls
    nothing, from ``response_format``. Raises InvalidRequest naming the schema that no grammar can follow."""
    form = require_format(context.form, context.name)
    _check_schemas(tools)
    grammar = answer_grammar(
        form,
        tools,
        context.token_ids,
        reasoning=context.reasoning,
        opened=_opened(context, prompt),
        content=None if schema is None or response_format is None else _content(response_format),
        content_strict=schema is None or schema.strict,
    )
    fault = grammar_fault(grammar)
    if fault:
        # Each schema by itself was fine.
        raise InvalidRequest(f"`tools` cannot be followed together: {' '.join(fault.split())[:200]}", param="tools")
    return grammar


def reading_of(context: ApiContext, tools: ToolRequest | None, prompt: str, *, constrained: bool) -> Reading | None:
    """How answers to ``prompt`` are read; ``None`` where their text is all there is. ``constrained``: a schema alone
    says what they are, which leaves no room for thoughts."""
    callable_ = tools if tools is not None and tools.mode != "none" else None
    reasoning = None if constrained and tools is None else context.reasoning
    if callable_ is None and reasoning is None:
        return None
    form = context.form if callable_ is not None else None
    markers = (form.markers if form else ()) + (reasoning.markers if reasoning else ())
    kept = frozenset(context.token_ids[marker] for marker in markers if marker in context.token_ids)
    return Reading(callable_, form, reasoning, _opened(context, prompt), kept)


def _opened(context: ApiContext, prompt: str) -> bool:
    return context.reasoning is not None and context.reasoning.opened_by(prompt)


def _check_schemas(tools: ToolRequest) -> None:
    """Refuse schemas that arguments are held to and cannot be, by their place in the request."""
    size = 0
    for i, function in enumerate(tools.functions):
        held = function.strict or tools.mode == "required"
        if held and tools.mode != "none" and function.name in tools.allowed:
            where = f"functions[{i}].parameters" if tools.legacy else f"tools[{i}].function.parameters"
            compile_schema(function.parameters, where, strict=function.strict)
            size += len(json.dumps(function.parameters))
        if size > MAX_HELD_BYTES:
            raise InvalidRequest(
                f"the schemas of `tools` must have at most {MAX_HELD_BYTES} bytes as JSON", param="tools"
            )


def _content(response_format: dict[str, Any]) -> dict[str, Any]:
    """The schema in a ``response_format`` that was found to be good."""
    if response_format["type"] == "json_object":
        return ANY_OBJECT
    schema: dict[str, Any] = response_format["json_schema"]["schema"]
    return schema
