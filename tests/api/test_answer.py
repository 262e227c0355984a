"""Answers: the same whatever the deltas, in the form that clients are known to read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from specproxy.errors import EngineFailed, InvalidRequest
from specproxy.server.api import AnswerMeta, ApiContext
from specproxy.vocabulary import Delta, ErrorInfo, SequenceStats


def test_whole_chat_answer(wire: Any, chat: Any, context: ApiContext) -> None:
    """The body has every field of the API, and the SDK's own type takes it."""
    request = chat(metadata={"a": "b"}, service_tier="auto")
    ids = [*context.tokenizer.encode("Hello é", special=False), wire.EOS]
    body = wire.run(request, [wire.deltas(request, ids, [2])], {"route": "r"})
    prompt = request.prompt_tokens
    assert json.loads(body) == {
        "id": "id-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "house",
        "choices": [
            {
                "index": 0,
                "message": {"content": "Hello é", "role": "assistant", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "system_fingerprint": "fp_1",
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": len(ids),
            "total_tokens": prompt + len(ids),
            "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
            "completion_tokens_details": {
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
                "reasoning_tokens": 0,
                "audio_tokens": 0,
            },
        },
        "service_tier": "auto",
        "metadata": {"a": "b"},
        "specproxy": {"route": "r"},
    }
    assert ChatCompletion.model_validate_json(body, strict=True).choices[0].message.content == "Hello é"


def test_prediction_usage(wire: Any, chat: Any, context: ApiContext) -> None:
    """Prediction tokens are counted up to where a stop string cuts the answer, however the engine's bursts fell."""
    ids = context.tokenizer.encode("one two three STOP four five", special=False)
    request = chat(prediction={"type": "content", "content": "one two three four"}, stop="STOP")
    found = set()
    for sizes in ([], [1] * (len(ids) - 1), [3]):
        body = wire.run(request, [wire.deltas(request, ids, sizes)])
        details = json.loads(body)["usage"]["completion_tokens_details"]
        found.add((details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]))
    [(accepted, rejected)] = found
    assert accepted + rejected == len(request.prediction)
    assert 0 < accepted < len(request.prediction)


def test_chat_stream(wire: Any, chat: Any, context: ApiContext) -> None:
    """Role first, content, one finish chunk with an empty delta, a usage chunk without choices, [DONE]."""
    request = chat(stream=True, stream_options={"include_usage": True})
    ids = [*context.tokenizer.encode("Hello there", special=False), wire.EOS]
    chunks = wire.events(wire.run(request, [wire.deltas(request, ids, [1, 1])], {"route": "r"}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert wire.text(chunks) == "Hello there"
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], len(ids))
    assert chunks[-1]["specproxy"] == {"route": "r"}
    assert {(c["id"], c["created"], c["model"], c["system_fingerprint"], c["object"]) for c in chunks} == {
        ("id-1", 1700000000, "house", "fp_1", "chat.completion.chunk")
    }
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)


def test_stream_without_usage(wire: Any, chat: Any) -> None:
    """No chunk mentions usage, and the specproxy object is in the last one, the finish chunk."""
    request = chat(stream=True)
    chunks = wire.events(wire.run(request, [wire.deltas(request, [5, wire.EOS], [])], {"k": 1}))
    assert not any("usage" in chunk for chunk in chunks)
    assert ["specproxy" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_continuous_usage(wire: Any, chat: Any) -> None:
    """Every chunk may carry the counts so far."""
    request = chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    ids = request.context.tokenizer.encode("one two", special=False)
    chunks = wire.events(wire.run(request, [wire.deltas(request, ids, [1] * len(ids), "length")]))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == len(ids)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="ab .é日\U0001f600", min_size=1, max_size=30),
    sizes=st.lists(st.integers(0, 5), max_size=8),
    stop=st.sampled_from([None, ["b"], [" a", "ab."], ["\U0001f600"]]),
    legacy=st.booleans(),
    reason=st.sampled_from(["stop", "length"]),
)
def test_streamed_and_whole_say_the_same(
    wire: Any, chat: Any, completion: Any, text: str, sizes: list[int], stop: Any, legacy: bool, reason: str
) -> None:
    """Text, tokens, logprobs, finish reason and usage agree between a stream, however cut, and a whole answer."""
    parse, count = (completion, {"logprobs": 2}) if legacy else (chat, {"logprobs": True, "top_logprobs": 2})
    fields = count | {"stop": stop, "return_token_ids": True}
    whole_request = parse(**fields)
    ids = whole_request.context.tokenizer.encode(text, special=False)
    ids = [*ids, wire.EOS] if reason == "stop" else ids
    whole = json.loads(wire.run(whole_request, [wire.deltas(whole_request, ids, [], reason)]))
    request = parse(**fields, stream=True, stream_options={"include_usage": True})
    chunks = wire.events(wire.run(request, [wire.deltas(request, ids, sizes, reason)]))
    choice = whole["choices"][0]
    parts = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert wire.text(chunks) == (choice["text"] if legacy else choice["message"]["content"])
    assert [token for part in parts for token in part.get("token_ids", [])] == choice["token_ids"]
    logprobs = [part["logprobs"] for part in parts if part["logprobs"]]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset") if legacy else ("content",):
        assert [entry for part in logprobs for entry in part[name]] == choice["logprobs"][name]
    assert (parts[-1]["finish_reason"], parts[-1].get("stop_reason")) == (
        choice["finish_reason"],
        choice.get("stop_reason"),
    )
    assert chunks[-1]["usage"] | {"prompt_tokens_details": 0, "completion_tokens_details": 0} == whole["usage"] | {
        "prompt_tokens_details": 0,
        "completion_tokens_details": 0,
    }


def test_stop_string_ends_the_answer_early(wire: Any, chat: Any, context: ApiContext, meta: AnswerMeta) -> None:
    """The choice is done before the engine knows; later tokens are ignored, the counts that follow are taken."""
    request = chat(stop=["three"])
    ids = context.tokenizer.encode("one two three four", special=False)
    answer = request.answer(meta)
    pushed = answer.push(0, Delta("x", ids))
    assert (pushed.done, pushed.tokens, answer.done) == (True, len(ids) - 1, True)
    assert answer.push(0, Delta("x", [7, 8])).tokens == 0
    assert answer.push(0, Delta("x", finish_reason="abort", stats=wire.STATS)).done
    body = json.loads(answer.finish())
    choice = body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == (
        "one two ",
        "stop",
        "three",
    )
    assert body["usage"]["completion_tokens"] == len(ids) - 1
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 4


def test_stop_token_is_named(wire: Any, chat: Any) -> None:
    """A stop token of the request is the stop_reason; the model's own end is none."""
    request = chat(stop_token_ids=[40])
    for token, reason in ((40, 40), (wire.EOS, None)):
        body = json.loads(wire.run(request, [wire.deltas(request, [50, token], [])]))
        assert body["choices"][0].get("stop_reason") == reason


def test_several_choices_streamed(wire: Any, chat: Any, meta: AnswerMeta) -> None:
    """Every choice has its role chunk and its one finish chunk, under its index, in whatever order they run."""
    request = chat(stream=True, n=2)
    answer = request.answer(meta)
    data = b""
    for index, token, reason in ((1, 50, None), (0, 60, None), (1, wire.EOS, "stop"), (0, 61, "length")):
        stop = token if reason == "stop" else None
        data += answer.push(index, Delta("x", [token], finish_reason=reason, stop_token=stop)).data
    chunks = wire.events(data + answer.finish())
    for index, reason in ((0, "length"), (1, "stop")):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [reason]
        assert own[-1]["delta"] == {}
    assert answer.finish_reasons == ["length", "stop"]
    assert answer.completion_tokens == 4


def test_usage_of_several_choices(completion: Any, meta: AnswerMeta) -> None:
    """Prompts count once each, answers all; cached tokens are those of a prompt's least fortunate choice."""
    request = completion(prompt=[[5] * 10, [6] * 20], n=2)
    answer = request.answer(meta)
    for index, cached in enumerate((0, 8, 16, 16)):
        answer.push(index, Delta("x", [50], finish_reason="length", stats=SequenceStats(cached_tokens=cached)))
    usage = json.loads(answer.finish())["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (30, 4)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 16
    assert len(answer.stats) == 4


@pytest.mark.parametrize(
    ("info", "status", "kind"),
    [
        (ErrorInfo("boom"), 500, EngineFailed),
        (ErrorInfo("no", 400, "invalid_request_error", "c", "p"), 400, InvalidRequest),
        (None, 500, EngineFailed),
    ],
)
def test_errors_of_the_engine_are_raised(chat: Any, meta: AnswerMeta, info: Any, status: int, kind: type) -> None:
    """A delta that reports an error raises it, with the status the engine gave it."""
    with pytest.raises(kind) as caught:
        chat().answer(meta).push(0, Delta("x", finish_reason="error", error=info))
    assert caught.value.status == status
    if info is not None:
        assert caught.value.info() == info


def test_finish_before_the_end(chat: Any, meta: AnswerMeta) -> None:
    """A stream that has not ended cannot be ended cleanly."""
    with pytest.raises(RuntimeError, match="1 choices still running"):
        chat().answer(meta).finish()
