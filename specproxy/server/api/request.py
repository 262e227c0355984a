"""The steps that both endpoints take: open the body before tokenising, put the request together after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from specproxy.server.api.body import decode_object, typed
from specproxy.server.api.common import (
    CommonFields,
    check_override,
    choices_of,
    prediction_text,
    seed_of,
    stops_of,
    stream_options_of,
)
from specproxy.server.api.context import ApiContext
from specproxy.server.api.fields import fields_of, refuse_unsupported
from specproxy.server.api.parsed import Endpoint, ParsedRequest, Prompt
from specproxy.server.api.room import check_min_tokens, encode_prediction
from specproxy.server.api.tools import Reading
from specproxy.structured.schemas import AnswerSchema
from specproxy.vocabulary import SamplingParams

F = TypeVar("F", bound=CommonFields)


def read_body(body: bytes, kind: type[F], endpoint: Endpoint, context: ApiContext) -> tuple[dict[str, Any], F]:
    """The body as sent and as typed fields, once its model is known and nothing in it is refused.

    Raises InvalidRequest, ModelNotFound.
    """
    given = decode_object(body)
    fields = typed(given, kind)
    context.resolve(fields.model)
    refuse_unsupported(given, fields_of(endpoint))
    check_override(fields)
    return given, fields


def build_request(
    endpoint: Endpoint,
    context: ApiContext,
    body: dict[str, Any],
    fields: CommonFields,
    params: SamplingParams,
    prompts: Sequence[Prompt],
    asked: int | None,
    *,
    echo: bool = False,
    schema: AnswerSchema | None = None,
    reading: Reading | None = None,
) -> ParsedRequest:
    """The request from its parts. ``asked``: the limit on tokens that the client gave. ``schema``: what the answer
    has to be; ``reading``: how it is read. Raises InvalidRequest."""
    check_min_tokens(params.min_tokens, min(prompt.max_tokens for prompt in prompts))
    options = stream_options_of(fields)
    known = fields_of(endpoint)
    return ParsedRequest(
        endpoint=endpoint,
        context=context,
        model=context.resolve(fields.model),
        body=body,
        prompts=tuple(prompts),
        params=params,
        n=choices_of(fields),
        seed=seed_of(fields),
        max_tokens=asked,
        stream=bool(fields.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        stop=stops_of(fields),
        include_stop=bool(fields.include_stop_str_in_output),
        skip_special_tokens=fields.skip_special_tokens is not False,
        prediction=encode_prediction(context, prediction_text(fields)),
        echo=echo,
        schema=schema,
        reading=reading,
        return_token_ids=bool(fields.return_token_ids),
        cache_salt=fields.cache_salt or "",
        metadata=fields.metadata,
        service_tier=fields.service_tier,
        unknown=tuple(name for name in body if name not in known),
    )
