"""An engine that dies: the stream pauses and goes on with the same text."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import openai
import pytest

Body = Callable[..., dict[str, Any]]


def test_a_stream_survives_the_death_of_the_engine(server: Any, client: openai.OpenAI, chat_body: Body) -> None:
    """kill -9 in the middle of two choices with logprobs: text, logprobs and usage are those of a quiet run."""
    body = chat_body(n=2, max_tokens=120, ignore_eos=True, logprobs=True, top_logprobs=2)
    quiet = client.chat.completions.create(**extra(body))
    starts = server.metric("specproxy_engine_starts_total")
    pieces: list[Any] = []
    killed = False
    stream = client.chat.completions.create(**extra(body | {"stream": True, "stream_options": {"include_usage": True}}))
    for chunk in stream:
        pieces.append(chunk)
        if not killed and len(pieces) > 12:
            os.kill(server.engine_pid, signal.SIGKILL)
            killed = True
    assert killed
    for index, choice in enumerate(quiet.choices):
        parts = [c for chunk in pieces for c in chunk.choices if c.index == index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        entries = [entry for part in parts if part.logprobs for entry in part.logprobs.content or []]
        assert choice.logprobs is not None
        assert [entry.model_dump() for entry in entries] == [
            entry.model_dump() for entry in choice.logprobs.content or []
        ]
    assert quiet.usage is not None
    assert pieces[-1].usage.completion_tokens == quiet.usage.completion_tokens
    assert server.metric("specproxy_engine_starts_total") == starts + 1
    assert server.ready()["status"] == "ready"


def test_requests_that_come_while_the_engine_restarts_wait_for_it(
    server: Any, http: httpx.Client, chat_body: Body
) -> None:
    """They are answered, not refused; /ready says meanwhile that it restarts."""
    expected = http.post("/v1/chat/completions", json=chat_body()).json()["choices"][0]["message"]["content"]
    os.kill(server.engine_pid, signal.SIGKILL)
    with http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True), timeout=100) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    assert response.status_code == 200
    chunks = [msgspec.json.decode(event) for event in events]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text == expected
    assert "signal SIGKILL" in {line["reason"] for line in server.events("engine died")}


@pytest.mark.slow
def test_an_engine_that_hangs_is_replaced_and_its_stream_goes_on(
    start_server: Callable[..., Any], chat_body: Body
) -> None:
    """A process that stopped in mid-stream is killed once it was silent for as long as the configuration says."""
    server = start_server("--set", "server.engine_silence_s=2")
    body = chat_body(max_tokens=120, ignore_eos=True)
    text, stopped = "", False
    with httpx.Client(base_url=server.base_url, timeout=60) as http:
        quiet = http.post("/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        with http.stream("POST", "/chat/completions", json=body | {"stream": True}) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    choices = msgspec.json.decode(line.removeprefix("data: "))["choices"]
                    text += "".join(choice["delta"].get("content") or "" for choice in choices)
                if not stopped and len(text) > 40:
                    os.kill(server.engine_pid, signal.SIGSTOP)
                    stopped = True
    assert stopped
    assert text == quiet
    [hung] = server.events("engine hangs")
    assert hung["in_flight"] == 1
    assert "it hung" in server.events("engine died")[0]["reason"]


def extra(body: dict[str, Any]) -> dict[str, Any]:
    """The SDK takes parameters that are not OpenAI's in ``extra_body``."""
    ours = {name: body[name] for name in ("ignore_eos",) if name in body}
    return {name: value for name, value in body.items() if name not in ours} | {"extra_body": ours}
