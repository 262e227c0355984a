"""Clients that go away: in every phase the sequence ends and its pages come back."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

Body = Callable[..., dict[str, Any]]


def is_idle(server: Any) -> bool:
    """Whether nothing is in flight and no page is held."""
    return (
        server.metric("specproxy_sequences_in_flight") == 0 and server.metric("specproxy_kv_pages", state="used") == 0
    )


@pytest.fixture
def must_become_idle(server: Any, eventually: Callable[..., None]) -> Callable[[], None]:
    """Waits until the server holds nothing any more."""
    return lambda: eventually(lambda: is_idle(server), 20, "all pages coming back")


def test_a_client_that_closes_mid_stream_frees_its_pages(
    server: Any, http: httpx.Client, chat_body: Body, must_become_idle: Callable[[], None]
) -> None:
    """The rest of a long answer is never generated."""
    body = chat_body(stream=True, max_tokens=1800, ignore_eos=True)
    before = server.metric("specproxy_generation_tokens_total")
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_bytes())
    must_become_idle()
    assert server.metric("specproxy_generation_tokens_total") - before < 900
    assert server.events("request")[-1]["status"] == 499


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("pause_s", [0.0, 0.03])
def test_a_client_that_closes_before_the_first_byte_frees_its_pages(
    server: Any, chat_body: Body, must_become_idle: Callable[[], None], stream: bool, pause_s: float
) -> None:
    """While tokenising, queued or in prefill, streamed or not."""
    long = [{"role": "user", "content": "one two three four " * 400}]
    post(server, chat_body(messages=long, max_tokens=300, ignore_eos=True, stream=stream), pause_s).close()
    must_become_idle()
    assert server.get("/health").status_code == 200


def test_a_client_that_never_reads_holds_up_nobody(server: Any, http: httpx.Client, chat_body: Body) -> None:
    """Its backlog waits on its own connection, others go on."""
    body = chat_body(stream=True, max_tokens=1500, ignore_eos=True, logprobs=True, top_logprobs=20)
    deaf = post(server, body, 0.2)
    try:
        assert http.post("/v1/chat/completions", json=chat_body(), timeout=30).status_code == 200
    finally:
        deaf.close()


def post(server: Any, body: dict[str, Any], pause_s: float) -> socket.socket:
    """Send a request on a bare socket and return it after ``pause_s`` seconds, unread."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    data = msgspec.json.encode(body)
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    time.sleep(pause_s)
    return connection
