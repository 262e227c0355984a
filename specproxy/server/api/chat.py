"""The body of /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from specproxy.errors import InvalidRequest
from specproxy.server.api.common import MAX_LOGPROBS, CommonFields, require, sampling_params
from specproxy.server.api.context import ApiContext
from specproxy.server.api.formats import answer_schema
from specproxy.server.api.messages import template_messages
from specproxy.server.api.parsed import ParsedRequest, Prompt
from specproxy.server.api.request import build_request, read_body
from specproxy.server.api.room import check_max_tokens, encode_prompt, room_for_answer
from specproxy.server.api.tools import reading_of, requested_tools, tool_grammar
from specproxy.structured.grammars import refuse_beside_grammar
from specproxy.tools.request import ToolRequest

_TEMPLATE_ARGUMENTS = ("messages", "tools", "add_generation_prompt")
"""Variables of the template that the request has its own fields for."""


class ChatFields(CommonFields, kw_only=True):
    """Honoured fields."""

    messages: Any = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    response_format: dict[str, Any] | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None


def parse_chat(body: bytes, context: ApiContext) -> ParsedRequest:
    """Validate and tokenise a body. Pure CPU work: run it in a thread for large bodies.

    Raises InvalidRequest naming the field, ContextTooLong, ModelNotFound.
    """
    given, fields = read_body(body, ChatFields, "chat", context)
    params = sampling_params(fields, context.tokenizer.vocab_size, logprobs=_logprobs(fields))
    schema = answer_schema(fields.response_format)
    tools = requested_tools(given, context)
    asked = _max_tokens(fields)
    text = _render(fields, context, tools)
    grammar = "" if schema is None else schema.grammar
    if tools is not None:
        grammar = tool_grammar(context, tools, text, schema, fields.response_format)
    if grammar:
        params = replace(params, grammar=grammar)
        refuse_beside_grammar(params)
    reading = reading_of(context, tools, text, constrained=schema is not None)
    ids = encode_prompt(context, text, "messages", special=bool(fields.add_special_tokens))
    limit = room_for_answer(context, len(ids), asked, None, "messages")
    prompt = Prompt(ids, text, limit)
    return build_request("chat", context, given, fields, params, [prompt], asked, schema=schema, reading=reading)


def _logprobs(fields: ChatFields) -> int | None:
    """Alternatives beside the chosen token; ``None`` where no logprobs are wanted. Raises InvalidRequest."""
    top = fields.top_logprobs or 0
    require(0 <= top <= MAX_LOGPROBS, "top_logprobs", f"from 0 to {MAX_LOGPROBS}", top)
    if top and not fields.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs: true`", param="top_logprobs")
    return top if fields.logprobs else None


def _max_tokens(fields: ChatFields) -> int | None:
    """What the client asked for; ``max_completion_tokens`` is the newer name. Raises InvalidRequest."""
    newer = check_max_tokens("max_completion_tokens", fields.max_completion_tokens, 1)
    older = check_max_tokens("max_tokens", fields.max_tokens, 1)
    return older if newer is None else newer


def _render(fields: ChatFields, context: ApiContext, tools: ToolRequest | None) -> str:
    """The prompt's text. Raises InvalidRequest."""
    messages = template_messages(fields.messages, context.form)
    if context.template is None:
        raise InvalidRequest(f"the model `{context.name}` has no chat template; use /v1/completions", param="messages")
    resume = bool(fields.continue_final_message)
    generation = not resume if fields.add_generation_prompt is None else fields.add_generation_prompt
    if resume and generation:
        raise InvalidRequest(
            "`continue_final_message` and `add_generation_prompt` cannot both be true", param="continue_final_message"
        )
    kwargs = fields.chat_template_kwargs or {}
    for name in _TEMPLATE_ARGUMENTS:
        if name in kwargs:
            where = f"chat_template_kwargs.{name}"
            raise InvalidRequest(f"`{where}`: use the request's own field `{name}`", param=where)
    hints = {"reasoning_effort": fields.reasoning_effort, "verbosity": fields.verbosity}
    return context.template.render(
        messages,
        add_generation_prompt=generation,
        continue_final_message=resume,
        tools=None if tools is None else tools.declarations,
        kwargs={name: hint for name, hint in hints.items() if hint is not None} | kwargs,
    )
