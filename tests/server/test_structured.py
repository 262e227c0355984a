"""Structured outputs over HTTP: SDK and plain clients, streamed and whole, refusals, counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

Body = Callable[..., dict[str, Any]]
ASKED = [{"role": "user", "content": "Write a short calendar event as JSON: Ann meets Bob about the budget."}]


class Event(BaseModel):
    """What is asked for."""

    title: Literal["Budget", "Lunch", "Review"]
    priority: Literal["low", "medium", "high"]
    minutes: int
    remote: bool


def schema_format(**more: Any) -> dict[str, Any]:
    """A strict ``response_format`` for Event."""
    schema = Event.model_json_schema()
    return {"type": "json_schema", "json_schema": {"name": "event", "schema": schema, "strict": True} | more}


def test_the_sdk_parses_what_it_asked_for(client: openai.OpenAI, chat_body: Body) -> None:
    """``parse`` with a pydantic model, as unmodified clients call it."""
    answer = client.chat.completions.parse(**chat_body(messages=ASKED, max_tokens=200), response_format=Event)
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Event)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_streamed_plain_and_whole_are_the_same_valid_text(
    client: openai.OpenAI, chat_body: Body, temperature: float
) -> None:
    """Whatever drafts, and however it is sent, each choice is the same JSON of the schema, ended by it."""
    body = chat_body(
        messages=ASKED, max_tokens=200, n=2, temperature=temperature, response_format=schema_format(), seed=3
    )
    whole = client.chat.completions.create(**body)
    plain = client.chat.completions.create(**body, extra_headers={"x-specproxy-speculate": "off"})
    chunks = list(client.chat.completions.create(**body, stream=True))
    for choice in whole.choices:
        text = choice.message.content
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert (
            "".join(part.delta.content or "" for part in parts) == text == plain.choices[choice.index].message.content
        )
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason] == ["stop"]
        Event.model_validate_json(text or "")


def test_json_object_gives_an_object(client: openai.OpenAI, chat_body: Body) -> None:
    """Any object, or the beginning of one where there was no room for the rest."""
    answer = client.chat.completions.create(
        **chat_body(messages=ASKED, max_tokens=300, temperature=0.0, response_format={"type": "json_object"})
    )
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_keyword_that_cannot_be_kept_to_is_named(client: openai.OpenAI, chat_body: Body) -> None:
    """A 400 in OpenAI's form with the path; not strict, the same schema is served as far as it can be."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**chat_body(response_format=schema_format(schema=schema)))
    assert caught.value.param == "response_format.json_schema.schema.properties.a.uniqueItems"
    assert caught.value.type == "invalid_request_error"
    body = chat_body(response_format=schema_format(schema=schema, strict=False), max_tokens=8)
    assert client.chat.completions.create(**body).choices[0].message.content


def test_what_contradicts_a_format_is_a_400_in_a_stream_too(http: httpx.Client, chat_body: Body) -> None:
    """A stream that has not begun is still a proper error."""
    beside = chat_body(response_format={"type": "json_object"}, ignore_eos=True, stream=True)
    answer = http.post("/v1/chat/completions", json=beside)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "ignore_eos"


def test_answers_are_counted_by_route_and_verdict(server: Any, client: openai.OpenAI, chat_body: Body) -> None:
    """Valid and truncated answers of the route that matches response_format; forced tokens among the drafted ones."""

    def count(verdict: str) -> float:
        return float(server.metric("specproxy_structured_answers_total", route="structured", verdict=verdict))

    before = {verdict: count(verdict) for verdict in ("valid", "truncated", "invalid")}
    body = chat_body(messages=ASKED, response_format=schema_format(), temperature=0.0)
    client.chat.completions.create(**body | {"max_tokens": 200})
    client.chat.completions.create(**body | {"max_tokens": 3})
    after = {verdict: count(verdict) - before[verdict] for verdict in before}
    assert after == {"valid": 1, "truncated": 1, "invalid": 0}
    assert server.metric("specproxy_draft_tokens_total", route="structured", drafter="grammar") > 0
