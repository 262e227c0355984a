"""How prompt and answer share the model's context. Limits refuse, in OpenAI's wording; nothing is ever cut."""

from __future__ import annotations

from typing import Literal

from specproxy.errors import ContextTooLong, InvalidRequest
from specproxy.server.api.common import require
from specproxy.server.api.context import ApiContext

MAX_SEQUENCES = 2048
"""Choices of one request, over all its prompts."""

Field = Literal["messages", "prompt"]


def encode_prompt(context: ApiContext, text: str, field: Field, *, special: bool) -> list[int]:
    """Ids of a prompt. Raises ContextTooLong, without tokenising where the length alone says so; InvalidRequest."""
    least = context.tokenizer.least_tokens(text)
    if least > context.max_model_len:
        raise _too_long(context, f"at least {least}", field)
    return context.tokenizer.encode(text, special=special)


def room_for_answer(context: ApiContext, num_prompt: int, asked: int | None, default: int | None, field: Field) -> int:
    """Tokens that the answer to a prompt of ``num_prompt`` tokens may have.

    ``asked``: what the client wants, refused if it does not fit. ``default``: the API's own, ``None`` for all there is.
    Raises ContextTooLong, InvalidRequest for an empty prompt.
    """
    if num_prompt == 0:
        raise InvalidRequest(f"`{field}` has no tokens; this tokenizer adds none of its own", param=field)
    limit = context.max_model_len
    left = limit - num_prompt
    if left < 0 or (left == 0 and asked != 0):
        raise _too_long(context, str(num_prompt), field)
    if asked is None:
        return left if default is None else min(default, left)
    if asked > left:
        split = {
            "messages": f"({num_prompt} in the messages, {asked} in the completion)",
            "prompt": f"({num_prompt} in your prompt; {asked} for the completion)",
        }
        raise ContextTooLong(
            f"This model's maximum context length is {limit} tokens. However, you requested {num_prompt + asked} "
            f"tokens {split[field]}. Please reduce the length of the {field} or completion.",
            param=field,
        )
    return asked


def encode_prediction(context: ApiContext, text: str) -> list[int]:
    """Ids of a predicted answer. Raises InvalidRequest for one that no answer could match in full."""
    if not text:
        return []
    limit = context.max_model_len
    ids = [] if context.tokenizer.least_tokens(text) > limit else context.tokenizer.encode(text, special=False)
    if not 0 < len(ids) <= limit:
        raise InvalidRequest(
            f"`prediction.content` has more than the {limit} tokens of this model's context", param="prediction.content"
        )
    return ids


def check_max_tokens(name: str, value: int | None, least: int) -> int | None:
    """Raises InvalidRequest for a limit below ``least``."""
    require(value is None or value >= least, name, f"{least} or more", value)
    return value


def check_min_tokens(min_tokens: int, max_tokens: int) -> None:
    """Raises InvalidRequest where the answer would have to be longer than it may be."""
    require(min_tokens <= max_tokens, "min_tokens", f"at most the {max_tokens} tokens the answer may have", min_tokens)


def check_sequences(prompts: int, n: int) -> None:
    """Raises InvalidRequest for more choices than one request may have."""
    if prompts * n > MAX_SEQUENCES:
        raise InvalidRequest(
            f"`n` times the number of prompts must be at most {MAX_SEQUENCES}, got {prompts * n}", param="n"
        )


def _too_long(context: ApiContext, tokens: str, field: Field) -> ContextTooLong:
    return ContextTooLong(
        f"This model's maximum context length is {context.max_model_len} tokens. However, your {field} resulted in "
        f"{tokens} tokens. Please reduce the length of the {field}.",
        param=field,
    )
