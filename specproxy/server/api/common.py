"""What both endpoints share: the fields with the same meaning, their ranges, and the sampling parameters they make."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from specproxy.errors import InvalidRequest
from specproxy.policy.override import OWN_KEYS
from specproxy.server.api.body import typed
from specproxy.vocabulary import MAX_SEED, SamplingParams

GREEDY_BELOW = 1e-5
"""Temperatures below it are 0: dividing by less pushes float32 logits together or out of range."""

MAX_STOPS = 4
MAX_STOP_CHARS = 4096
MAX_CHOICES = 128
MAX_LOGPROBS = 20


class StreamOptions(Struct):
    """Of a streamed answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Prediction(Struct):
    """OpenAI's Predicted Outputs: ``content`` is a string or text parts."""

    type: str
    content: Any


class CommonFields(Struct, kw_only=True):
    """Honoured fields of both endpoints. ``None`` is as good as absent."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prediction: Prediction | None = None
    return_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    cache_salt: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    specproxy: dict[str, Any] | None = None


def require(condition: bool, name: str, expectation: str, value: object) -> None:
    """Raise InvalidRequest naming the field unless ``condition`` holds."""
    if not condition:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise InvalidRequest(f"`{name}` must be {expectation}, got {shown}", param=name)


def within(name: str, value: float | None, low: float, high: float, neutral: float) -> float:
    """``value`` from low to high, both included; ``neutral`` where it is absent."""
    if value is None:
        return neutral
    require(low <= value <= high, name, f"from {low:g} to {high:g}", value)
    return value


def sampling_params(
    fields: CommonFields, vocab_size: int, *, logprobs: int | None, prompt_logprobs: int | None = None
) -> SamplingParams:
    """Check every sampling field and put them together; ``max_tokens`` is each prompt's own. Raises InvalidRequest."""
    temperature = within("temperature", fields.temperature, 0.0, 2.0, 1.0)
    top_p = 1.0 if fields.top_p is None else fields.top_p
    require(0 < top_p <= 1, "top_p", "above 0 and at most 1", top_p)
    top_k = 0 if fields.top_k is None else fields.top_k
    require(top_k >= -1, "top_k", "at least 1, or 0 or -1 for all tokens", top_k)
    min_tokens = 0 if fields.min_tokens is None else fields.min_tokens
    require(min_tokens >= 0, "min_tokens", "0 or more", min_tokens)
    stop_ids = fields.stop_token_ids or []
    check_ids("stop_token_ids", stop_ids, vocab_size)
    return SamplingParams(
        temperature=0.0 if temperature < GREEDY_BELOW else temperature,
        top_p=top_p,
        top_k=top_k if 0 < top_k < vocab_size else 0,
        min_p=within("min_p", fields.min_p, 0.0, 1.0, 0.0),
        presence_penalty=within("presence_penalty", fields.presence_penalty, -2.0, 2.0, 0.0),
        frequency_penalty=within("frequency_penalty", fields.frequency_penalty, -2.0, 2.0, 0.0),
        repetition_penalty=within("repetition_penalty", fields.repetition_penalty, 0.01, 100.0, 1.0),
        logit_bias=_logit_bias(fields.logit_bias or {}, vocab_size),
        min_tokens=min_tokens,
        stop_token_ids=tuple(dict.fromkeys(stop_ids)),
        ignore_eos=bool(fields.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def check_ids(name: str, ids: list[int], vocab_size: int) -> None:
    """Raise InvalidRequest unless every id is in the vocabulary."""
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        i = next(i for i, token in enumerate(ids) if not 0 <= token < vocab_size)
        raise InvalidRequest(
            f"`{name}[{i}]` must be a token id from 0 to {vocab_size - 1}, got {ids[i]}", param=f"{name}[{i}]"
        )


def stops_of(fields: CommonFields) -> tuple[str, ...]:
    """The stop strings, each once. Raises InvalidRequest."""
    stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"`stop` must have at most {MAX_STOPS} strings, got {len(stops)}", param="stop")
    for stop in stops:
        if not 0 < len(stop) <= MAX_STOP_CHARS:
            raise InvalidRequest(
                f"`stop` must have strings of 1 to {MAX_STOP_CHARS} characters, got one of {len(stop)}", param="stop"
            )
    return tuple(dict.fromkeys(stops))


def choices_of(fields: CommonFields) -> int:
    """``n``. Raises InvalidRequest."""
    n = 1 if fields.n is None else fields.n
    require(1 <= n <= MAX_CHOICES, "n", f"from 1 to {MAX_CHOICES}", n)
    return n


def seed_of(fields: CommonFields) -> int | None:
    """The client's seed modulo MAX_SEED (never negative, as in Python), ``None`` if it gave none."""
    return None if fields.seed is None else fields.seed % MAX_SEED


def stream_options_of(fields: CommonFields) -> StreamOptions:
    """Raises InvalidRequest where there are options but no stream."""
    if fields.stream_options is None:
        return StreamOptions()
    if not fields.stream:
        raise InvalidRequest("`stream_options` needs `stream: true`", param="stream_options")
    return fields.stream_options


def check_override(fields: CommonFields) -> None:
    """Raise InvalidRequest for keys of ``specproxy`` that mean nothing; the policy reads its value."""
    for name in fields.specproxy or {}:
        if name not in OWN_KEYS:
            known = " and ".join(f"`{key}`" for key in OWN_KEYS)
            raise InvalidRequest(f"`specproxy.{name}` is not known; the keys are {known}", param=f"specproxy.{name}")


def text_parts(content: Any, where: str, *, separator: str, kinds: tuple[str, ...] = ("text",)) -> str:
    """A string, or the text of its parts joined. Raises InvalidRequest naming the part that is no text."""
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(typed(content, list[dict[str, Any]], where)):
        kind = part.get("type", "text")
        if kind not in kinds:
            raise InvalidRequest(
                f"`{where}[{i}]`: parts of type {kind!r} are not supported, only {' and '.join(kinds)}",
                param=f"{where}[{i}]",
            )
        texts.append(typed(part.get(kind), str, f"{where}[{i}].{kind}"))
    return separator.join(texts)


def prediction_text(fields: CommonFields) -> str:
    """The predicted text, empty if there is none. Raises InvalidRequest."""
    if fields.prediction is None:
        return ""
    require(fields.prediction.type == "content", "prediction.type", "'content'", fields.prediction.type)
    return text_parts(fields.prediction.content, "prediction.content", separator="")


def _logit_bias(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    bias = {}
    for name, value in given.items():
        where = f"logit_bias.{name}" if len(name) <= 20 else "logit_bias"
        token = int(name) if name.isascii() and name.isdigit() and len(name) <= 20 else -1
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"`{where}`: names must be token ids from 0 to {vocab_size - 1}, got {name[:40]!r}", param=where
            )
        bias[token] = within(where, value, -100.0, 100.0, 0.0)
    return bias
