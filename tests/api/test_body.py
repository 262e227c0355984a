"""Bodies that are no JSON object, or hold the wrong types: each a 400 that names the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.errors import InvalidRequest, RequestError
from specproxy.server.api import ApiContext, parse_chat, parse_completion
from specproxy.server.api.body import decode_object, typed
from specproxy.server.api.chat import ChatFields
from specproxy.server.api.completions import CompletionFields
from specproxy.server.api.fields import fields_of


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b"[1]", "expected a JSON object, got array"),
        (b"null", "expected a JSON object, got null"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": 1' + b"0" * 100_000 + b"}", "JSON"),
    ],
)
def test_not_an_object(body: bytes, message: str) -> None:
    """What is not a JSON object is refused with the reason."""
    with pytest.raises(InvalidRequest, match=message):
        decode_object(body)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_named(number: str) -> None:
    """A number that JSON does not have is refused by the name of its field."""
    for template, path in (('{{"temperature": {}}}', "temperature"), ('{{"a": [{{"b": {}}}]}}', "a[0].b")):
        with pytest.raises(InvalidRequest, match="must be a finite number") as caught:
            decode_object(template.format(number).encode())
        assert caught.value.param == path


def test_nan_beside_broken_json_is_broken_json() -> None:
    """The name of a field is only given where the number is the whole fault."""
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        decode_object(b'{"temperature": NaN')


def test_last_of_duplicate_names_counts() -> None:
    """Duplicate names are no error."""
    assert decode_object(b'{"a": 1, "a": 2}') == {"a": 2}


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", "hot", "temperature"),
        ("temperature", True, "temperature"),
        ("max_tokens", 1.5, "max_tokens"),
        ("max_tokens", "10", "max_tokens"),
        ("stop", [1], "stop"),
        ("stop", {"a": 1}, "stop"),
        ("stream", "yes", "stream"),
        ("n", None, None),
        ("seed", 0.5, "seed"),
        ("logit_bias", [1], "logit_bias"),
        ("stop_token_ids", ["a"], "stop_token_ids[0]"),
        ("stream_options", {"include_usage": 1}, "stream_options.include_usage"),
        ("prediction", {"type": "content"}, "prediction"),
        ("metadata", "x", "metadata"),
        ("specproxy", "off", "specproxy"),
        ("model", 5, "model"),
    ],
)
def test_wrong_types_are_named(field: str, value: Any, param: str | None) -> None:
    """A field of the wrong type is named with its path; null is as good as absent."""
    if param is None:
        typed({field: value}, ChatFields)
        return
    with pytest.raises(InvalidRequest) as caught:
        typed({field: value}, ChatFields)
    assert (caught.value.param or "").startswith(param)
    assert param in caught.value.message


def status_of(parse: Callable[[bytes, ApiContext], object], body: dict[str, Any], context: ApiContext) -> int:
    """200, or the status of the error that the body gets."""
    try:
        parse(json.dumps(body).encode(), context)
    except RequestError as error:
        return error.status
    return 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
chat_names = sorted(set(ChatFields.__struct_fields__) - {"model"})
completion_names = sorted(set(CompletionFields.__struct_fields__) - {"model"})


@settings(max_examples=300, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(chat_names), json_values, max_size=4))
def test_any_chat_body_is_parsed_or_refused(context: ApiContext, fields: dict[str, Any]) -> None:
    """Whatever a field holds, the outcome is a request or an error of ours."""
    body = {"model": "house", "messages": [{"role": "user", "content": "x"}]} | fields
    assert status_of(parse_chat, body, context) in (200, 400)


@settings(max_examples=300, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(completion_names), json_values, max_size=4))
def test_any_completion_body_is_parsed_or_refused(context: ApiContext, fields: dict[str, Any]) -> None:
    """Whatever a field holds, the outcome is a request or an error of ours."""
    assert status_of(parse_completion, {"model": "house", "prompt": "x"} | fields, context) in (200, 400)


@settings(max_examples=300, deadline=None)
@given(messages=st.lists(st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name", "function_call",
    "refusal"]), json_values | st.sampled_from(["user", "assistant"]), max_size=4), max_size=3))  # fmt: skip
def test_any_messages_are_parsed_or_refused(context: ApiContext, messages: list[Any]) -> None:
    """Whatever a message looks like, the outcome is a request or an error of ours."""
    assert status_of(parse_chat, {"model": "house", "messages": messages}, context) in (200, 400)


def test_every_honoured_field_refuses_the_wrong_type(chat: Any) -> None:
    """No honoured field takes just anything, so none is silently ignored."""
    for name in fields_of("chat"):
        if fields_of("chat")[name].status == "honoured":
            with pytest.raises(RequestError):
                chat(**{name: [{"no": ["field", "has", "this", "form"]}]})
