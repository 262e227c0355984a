"""The stock ``openai`` package against a real server: everything an unmodified client does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

Body = Callable[..., dict[str, Any]]


def text_of(completion: Any) -> str:
    """The first choice's text."""
    return str(completion.choices[0].message.content)


def streamed_text(chunks: list[Any], index: int = 0) -> str:
    """The text of one choice, put together from its chunks."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def test_chat_answers_with_text_usage_and_a_request_id(client: openai.OpenAI, chat_body: Body) -> None:
    """A plain chat completion has all that clients read."""
    answer = client.chat.completions.create(**chat_body())
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "house"
    assert text_of(answer)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id
    assert answer.system_fingerprint


def test_the_same_seed_gives_the_same_text_streamed_or_not(client: openai.OpenAI, chat_body: Body) -> None:
    """Streaming and speculation change when tokens come, never which."""
    whole = client.chat.completions.create(**chat_body())
    chunks = list(client.chat.completions.create(**chat_body(stream=True)))
    plain = client.chat.completions.create(**chat_body(), extra_headers={"x-specproxy-speculate": "off"})
    assert text_of(whole) == streamed_text(chunks) == text_of(plain)


def test_the_drawn_seed_is_told_and_repeats_the_answer(client: openai.OpenAI, chat_body: Body) -> None:
    """A request without a seed can be repeated with the one in the header."""
    body = chat_body(temperature=1.0)
    del body["seed"]
    first = client.chat.completions.with_raw_response.create(**body)
    seed = int(first.headers["x-specproxy-seed"])
    again = client.chat.completions.create(**body, seed=seed)
    assert text_of(first.parse()) == text_of(again)


def test_a_stream_begins_with_the_role_and_ends_with_one_reason_and_the_usage(
    client: openai.OpenAI, chat_body: Body
) -> None:
    """Role first, one finish reason, then the usage chunk that was asked for."""
    chunks = list(client.chat.completions.create(**chat_body(stream=True, stream_options={"include_usage": True})))
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(reasons) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.fixture
def ending_body(chat_body: Body) -> dict[str, Any]:
    """A request whose answer ends by itself: the streaming helpers refuse one that was cut at its length."""
    task = "Extract the order as JSON with keys order_id, total.\n\nOrder Z42805 is shipped. The total is $960.15."
    return chat_body(messages=[{"role": "user", "content": task}], max_tokens=100, temperature=0)


def test_the_streaming_helper_assembles_the_answer(client: openai.OpenAI, ending_body: dict[str, Any]) -> None:
    """``chat.completions.stream`` accumulates a final completion."""
    with client.chat.completions.stream(**ending_body) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == text_of(final)
    assert text_of(final) == text_of(client.chat.completions.create(**ending_body))


async def test_the_async_client_gets_the_same_answers(
    async_client: openai.AsyncOpenAI, ending_body: dict[str, Any]
) -> None:
    """Async, streamed, and with the async helper."""
    whole = await async_client.chat.completions.create(**ending_body)
    stream = await async_client.chat.completions.create(**ending_body, stream=True)
    assert streamed_text([chunk async for chunk in stream]) == text_of(whole)
    async with async_client.chat.completions.stream(**ending_body) as helper:
        final = await helper.get_final_completion()
    assert text_of(final) == text_of(whole)


def test_two_choices_are_independent_and_come_in_one_stream(client: openai.OpenAI, chat_body: Body) -> None:
    """n = 2: different noise for each choice, the same texts streamed or not."""
    whole = client.chat.completions.create(**chat_body(n=2))
    chunks = list(client.chat.completions.create(**chat_body(n=2, stream=True)))
    texts = [str(choice.message.content) for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert texts[0] != texts[1]
    assert [streamed_text(chunks, 0), streamed_text(chunks, 1)] == texts


def test_logprobs_come_with_alternatives_streamed_or_not(client: openai.OpenAI, chat_body: Body) -> None:
    """One entry per token, best alternatives first, equal in both forms."""
    body = chat_body(logprobs=True, top_logprobs=3, max_tokens=8)
    whole = client.chat.completions.create(**body)
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    entries = logprobs.content or []
    assert whole.usage is not None
    assert 0 < len(entries) <= whole.usage.completion_tokens
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    assert all(entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob for entry in entries)
    chunks = client.chat.completions.create(**body, stream=True)
    streamed = [
        entry
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for entry in choice.logprobs.content or []
    ]
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in entries]


def test_a_stop_string_ends_the_text_before_it_and_keeps_the_counts(client: openai.OpenAI, chat_body: Body) -> None:
    """The stop string is not shown, the reason is stop, and what the engine counted is still reported."""
    body = chat_body(temperature=0, max_tokens=40)
    text = text_of(client.chat.completions.create(**body))
    stop = text[len(text) // 2 :][:3]
    cut = client.chat.completions.create(**body, stop=[stop])
    assert text_of(cut) == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.model_extra is not None
    assert cut.model_extra["specproxy"]["steps"] > 0


def test_completions_take_strings_lists_and_token_ids(client: openai.OpenAI) -> None:
    """Prompts in every form; choices in the order of the prompts."""
    options: dict[str, Any] = {"model": "house", "max_tokens": 8, "temperature": 0}
    one = client.completions.create(prompt="def add(a, b):", **options)
    two = client.completions.create(prompt=["def add(a, b):", "The capital of"], **options)
    ids = client.completions.create(prompt=[100, 200, 300], **options)
    assert two.choices[0].text == one.choices[0].text
    assert [choice.index for choice in two.choices] == [0, 1]
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 3
    chunks = list(client.completions.create(prompt=["def add(a, b):", "The capital of"], stream=True, **options))
    texts = ["".join(c.text for chunk in chunks for c in chunk.choices if c.index == i) for i in (0, 1)]
    assert texts == [choice.text for choice in two.choices]


def test_completions_echo_and_give_legacy_logprobs(client: openai.OpenAI) -> None:
    """``echo`` repeats the prompt; ``logprobs`` has the legacy parallel lists."""
    answer = client.completions.create(
        model="house", prompt="def add(a, b):", max_tokens=4, temperature=0, echo=True, logprobs=2
    )
    assert answer.choices[0].text.startswith("def add(a, b):")
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs)
    assert logprobs.token_logprobs[0] is None


def test_a_prediction_is_reported_in_the_usage(client: openai.OpenAI, chat_body: Body) -> None:
    """Predicted Outputs that hold are accepted, and the text is the one without them."""
    text = text_of(client.chat.completions.create(**chat_body(temperature=0, max_tokens=40)))
    answer = client.chat.completions.create(
        **chat_body(temperature=0, max_tokens=40, prediction={"type": "content", "content": text}),
        extra_headers={"x-specproxy-speculate": "prediction;k=8"},
    )
    assert text_of(answer) == text
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert (answer.usage.completion_tokens_details.accepted_prediction_tokens or 0) > 0


def test_errors_reach_the_sdks_own_classes(client: openai.OpenAI, chat_body: Body) -> None:
    """A bad value is a BadRequestError that names the field, an unknown model a NotFoundError."""
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**chat_body(temperature=9))
    assert bad.value.param == "temperature"
    assert bad.value.type == "invalid_request_error"
    assert bad.value.request_id
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(**chat_body(model="gpt-0"))
    assert unknown.value.code == "model_not_found"


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    """The served name is the first of the list."""
    names = [model.id for model in client.models.list()]
    assert names[0] == "house"
    assert client.models.retrieve("house").owned_by
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-0")


def test_headers_and_body_say_what_was_decided_and_what_happened(client: openai.OpenAI, chat_body: Body) -> None:
    """Route, rule, policy, drafters, K, seed and exactness at the beginning; counts at the end."""
    raw = client.chat.completions.with_raw_response.create(**chat_body())
    for name in ("route", "rule", "policy", "drafter", "k", "seed", "exactness", "accepted"):
        assert raw.headers[f"x-specproxy-{name}"]
    extra = raw.parse().model_extra
    assert extra is not None
    ours = extra["specproxy"]
    assert ours["route"] == raw.headers["x-specproxy-route"]
    assert ours["accepted"] == int(raw.headers["x-specproxy-accepted"])
    assert ours["drafted"] == sum(each["drafted"] for each in ours["drafters"])
    off = client.chat.completions.with_raw_response.create(
        **chat_body(), extra_headers={"x-specproxy-speculate": "off"}
    )
    assert off.headers["x-specproxy-drafter"] == "off"
    assert off.headers["x-specproxy-k"] == "0"
    assert off.headers["x-specproxy-reason"]


def test_a_sane_request_id_is_kept_and_another_replaced(http: httpx.Client, chat_body: Body) -> None:
    """The client's id is for its own logs; what could break a header or a log is not taken over."""
    kept = http.post("/v1/chat/completions", json=chat_body(max_tokens=1), headers={"x-request-id": "mine-42"})
    assert kept.headers["x-request-id"] == "mine-42"
    other = http.post("/v1/chat/completions", json=chat_body(max_tokens=1), headers={"x-request-id": "a b" * 100})
    assert other.headers["x-request-id"].startswith("req_")
