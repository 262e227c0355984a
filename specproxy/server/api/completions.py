"""The body of /v1/completions."""

from __future__ import annotations

from typing import Any

from specproxy.errors import InvalidRequest
from specproxy.server.api.body import kind_of, typed
from specproxy.server.api.common import (
    MAX_LOGPROBS,
    CommonFields,
    check_ids,
    choices_of,
    require,
    sampling_params,
)
from specproxy.server.api.context import ApiContext
from specproxy.server.api.parsed import ParsedRequest, Prompt
from specproxy.server.api.request import build_request, read_body
from specproxy.server.api.room import check_max_tokens, check_sequences, encode_prompt, room_for_answer

DEFAULT_MAX_TOKENS = 16
"""The API's own default."""


class CompletionFields(CommonFields, kw_only=True):
    """Honoured fields."""

    prompt: Any = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None


def parse_completion(body: bytes, context: ApiContext) -> ParsedRequest:
    """Validate and tokenise a body. Pure CPU work: run it in a thread for large bodies.

    Raises InvalidRequest naming the field, ContextTooLong, ModelNotFound.
    """
    given, fields = read_body(body, CompletionFields, "completions", context)
    n = choices_of(fields)
    require(fields.best_of in (None, n), "best_of", f"equal to n, which is {n}", fields.best_of)
    logprobs = fields.logprobs
    require(logprobs is None or 0 <= logprobs <= MAX_LOGPROBS, "logprobs", f"from 0 to {MAX_LOGPROBS}", logprobs)
    params = sampling_params(
        fields,
        context.tokenizer.vocab_size,
        logprobs=logprobs,
        prompt_logprobs=logprobs if fields.echo else None,
    )
    asked = check_max_tokens("max_tokens", fields.max_tokens, 0)
    prompts = _prompts(fields, context, asked, n)
    return build_request("completions", context, given, fields, params, prompts, asked, echo=bool(fields.echo))


def _prompts(fields: CompletionFields, context: ApiContext, asked: int | None, n: int) -> list[Prompt]:
    """Every prompt with its ids, its text and room for its answer. Raises InvalidRequest."""
    given = _listed(fields.prompt)
    check_sequences(len(given), n)
    prompts = []
    for where, item in given:
        ids = _ids(where, item, fields, context)
        limit = room_for_answer(context, len(ids), asked, DEFAULT_MAX_TOKENS, "prompt")
        text = item if isinstance(item, str) else ""
        if fields.echo and not text:
            text = context.tokenizer.decode(ids, skip_special=fields.skip_special_tokens is not False)
        prompts.append(Prompt(ids, text, limit))
    return prompts


def _ids(where: str, item: Any, fields: CompletionFields, context: ApiContext) -> list[int]:
    """Ids of one prompt. Raises InvalidRequest."""
    if isinstance(item, str):
        return encode_prompt(context, item, "prompt", special=fields.add_special_tokens is not False)
    ids = typed(item, list[int], where)
    check_ids(where, ids, context.tokenizer.vocab_size)
    return ids


def _listed(prompt: Any) -> list[tuple[str, Any]]:
    """Every prompt, a string or a list of ids, with its path in the body. Raises InvalidRequest."""
    if prompt is None:
        raise InvalidRequest("`prompt` is missing", param="prompt")
    if isinstance(prompt, str):
        return [("prompt", prompt)]
    if not isinstance(prompt, list) or not prompt:
        shown = "an empty list" if prompt == [] else kind_of(prompt)
        raise InvalidRequest(f"`prompt` must be a string, token ids, or a list of either; got {shown}", param="prompt")
    if isinstance(prompt[0], int):
        return [("prompt", prompt)]
    for i, item in enumerate(prompt):
        if not isinstance(item, str | list):
            raise InvalidRequest(
                f"`prompt[{i}]` must be a string or token ids, got {kind_of(item)}", param=f"prompt[{i}]"
            )
    return [(f"prompt[{i}]", item) for i, item in enumerate(prompt)]
