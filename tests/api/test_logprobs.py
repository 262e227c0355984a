"""Logprobs, echoed prompts and token ids, in both endpoints' forms."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion

from specproxy.errors import EngineFailed
from specproxy.server.api import AnswerMeta, ApiContext
from specproxy.vocabulary import Delta


def test_chat_logprobs(wire: Any, chat: Any, context: ApiContext) -> None:
    """One entry a counted token, with exact bytes; what cannot be is -9999; half a character is escaped."""
    request = chat(logprobs=True, top_logprobs=2)
    ids = [*context.tokenizer.encode("\U0001f600", special=False), wire.EOS]
    content = json.loads(wire.run(request, [wire.deltas(request, ids, [])]))["choices"][0]["logprobs"]["content"]
    assert len(content) == len(ids)
    assert bytes(byte for entry in content[:-1] for byte in entry["bytes"]) == "\U0001f600".encode()
    assert content[0]["token"].startswith("\\xf0")
    assert content[0]["top_logprobs"][0] == {key: content[0][key] for key in ("token", "bytes", "logprob")}
    assert content[0]["top_logprobs"][1]["logprob"] == -9999.0


def test_legacy_logprobs_with_echo(wire: Any, completion: Any, context: ApiContext) -> None:
    """Prompt and answer in one set of parallel lists; the first token has no logprob; offsets fit the text."""
    request = completion(prompt="Hi é there", echo=True, logprobs=1)
    ids = context.tokenizer.encode(" you", special=False)
    choice = json.loads(wire.run(request, [wire.deltas(request, ids, [], "length")]))["choices"][0]
    assert choice["text"] == "Hi é there you"
    found = choice["logprobs"]
    assert len({len(values) for values in found.values()}) == 1
    assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
    for offset, token in zip(found["text_offset"], found["tokens"], strict=True):
        assert token.startswith("bytes:") or choice["text"].startswith(token, offset)
    assert found["top_logprobs"][1][found["tokens"][1]] == -0.5


def test_echo_streamed(wire: Any, completion: Any, context: ApiContext) -> None:
    """The prompt is the first chunk of every choice."""
    request = completion(prompt="Hi", echo=True, logprobs=0, stream=True)
    ids = context.tokenizer.encode(" you", special=False)
    chunks = wire.events(wire.run(request, [wire.deltas(request, ids, [], "length")]))
    assert chunks[0]["choices"][0]["text"] == "Hi"
    assert chunks[0]["choices"][0]["logprobs"]["text_offset"] == [0, 1]
    assert chunks[1]["choices"][0]["logprobs"]["text_offset"] == [2]
    for chunk in chunks:
        # The SDK's type has no null for the first token's logprob, which the API has always sent, nor for a chunk's
        # finish reason; at run time the SDK checks neither.
        choices = [choice | {"finish_reason": "stop", "logprobs": None} for choice in chunk["choices"]]
        Completion.model_validate(chunk | {"choices": choices}, strict=True)


def test_scoring_without_an_answer(wire: Any, completion: Any) -> None:
    """max_tokens 0 with echo and logprobs scores the prompt."""
    request = completion(prompt=[50, 60], echo=True, logprobs=0, max_tokens=0)
    body = json.loads(wire.run(request, [wire.deltas(request, [], [], "length")]))
    assert len(body["choices"][0]["logprobs"]["tokens"]) == 2
    assert body["usage"]["completion_tokens"] == 0


def test_missing_logprobs_are_a_failure(completion: Any, chat: Any, meta: AnswerMeta) -> None:
    """An engine that leaves out what was asked for is an error, not an answer with holes."""
    with pytest.raises(EngineFailed, match="0 logprobs for 1 tokens"):
        chat(logprobs=True).answer(meta).push(0, Delta("x", [50]))
    answer = completion(prompt=[1, 2], echo=True, logprobs=1).answer(meta)
    answer.push(0, Delta("x", finish_reason="length", logprobs=[]))
    with pytest.raises(EngineFailed, match="0 logprobs for a prompt of 2 tokens"):
        answer.finish()


def test_token_ids(wire: Any, chat: Any, completion: Any) -> None:
    """Ids of the prompt stand beside the choices in chat, inside them in completions; streams give them first."""
    for parse in (chat, completion):
        request = parse(return_token_ids=True)
        body = json.loads(wire.run(request, [wire.deltas(request, [50, wire.EOS], [])]))
        holder = body if parse is chat else body["choices"][0]
        assert holder["prompt_token_ids"] == request.prompts[0].ids
        assert body["choices"][0]["token_ids"] == [50, wire.EOS]
        streamed = parse(return_token_ids=True, stream=True)
        first = wire.events(wire.run(streamed, [wire.deltas(streamed, [50, wire.EOS], [])]))[0]
        assert (first if parse is chat else first["choices"][0])["prompt_token_ids"] == request.prompts[0].ids
