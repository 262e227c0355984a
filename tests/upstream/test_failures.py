"""Upstreams that misbehave: clients get a clear error, another backend, or a stream that says that it broke."""

from __future__ import annotations

import concurrent.futures
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import openai
import pytest

from tests.upstream.conftest import CLIENT_KEY
from tests.upstream.scripted import GOOD, WHOLE, ScriptedServer, event

Ask = Callable[..., httpx.Response]
Stream = Callable[..., tuple[bytes, bool]]

TOLD = [
    ("gone", 502, "upstream_connect"),
    ("deaf", 504, "upstream_timeout_connect"),
    ("broken", 502, "upstream_status_5xx"),
    ("hangs", 504, "upstream_timeout_first_byte"),
    ("stranger", 502, "upstream_key_refused"),
    ("redirects", 502, "upstream_redirect"),
    ("loading", 503, "upstream_status_5xx"),
]


@pytest.mark.parametrize(("name", "status", "code"), TOLD)
def test_a_failure_before_the_first_byte_is_an_error_in_openais_form(
    ask: Ask, proxy: Any, name: str, status: int, code: str
) -> None:
    """It names the upstream, and is counted by its kind."""
    kind = code.removeprefix("upstream_")
    before = proxy.metric("specproxy_upstream_errors_total", upstream=name, kind=kind)
    answer = ask(name)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert f"upstream {name}: " in error["message"]
    assert proxy.metric("specproxy_upstream_errors_total", upstream=name, kind=kind) == before + 1


@pytest.mark.parametrize("name", ["gone", "broken", "hangs", "headers", "busy", "loading", "short", "stranger"])
def test_the_next_backend_answers_what_one_fails_before_its_first_byte(
    ask: Ask, stream: Stream, proxy: Any, name: str
) -> None:
    """Whole answers and streams, with the reason in a header and a metric; a stream is lost only once it began."""
    whole = ask(name, "good")
    if name != "headers":
        assert whole.content == WHOLE
        assert whole.headers["x-specproxy-fallback"].startswith(f"{name}: ")
        assert proxy.metric("specproxy_backend_fallbacks_total", backend=name, next="good") >= 1
    assert stream(name, "good") == (GOOD, True)


@pytest.mark.parametrize(("name", "code"), [("dies", "upstream_lost"), ("ends", "upstream_lost"),
                                            ("stalls", "upstream_timeout_idle")])  # fmt: skip
def test_a_stream_that_breaks_off_ends_with_an_error_event_and_no_end(
    stream: Stream, proxy: Any, name: str, code: str
) -> None:
    """Whole events only, no [DONE], the connection cut; no other backend begins anew."""
    raw, well = stream(name, "good")
    begun = event("a") + event("b")
    assert raw.startswith(begun)
    tail = raw.removeprefix(begun)
    assert msgspec.json.decode(tail.removeprefix(b"data: "))["error"]["code"] == code
    assert tail.count(b"data: ") == 1
    assert not well


def test_the_time_of_a_route_ends_a_stream_of_an_upstream_too(stream: Stream) -> None:
    """With the same error event as the engine's."""
    raw, well = stream("limited")
    assert raw.startswith(event("a") + event("b") + b'data: {"error":{"message":"the request did not finish')
    assert not well


def test_the_sdk_raises_where_an_upstream_dies(proxy: Any) -> None:
    """After what had come."""
    with openai.OpenAI(base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0) as client:
        chunks = client.chat.completions.create(
            model="house", messages=[{"role": "user", "content": "x"}], stream=True, extra_headers={"x-to": "dies"}
        )
        texts = []
        with pytest.raises(openai.APIError, match="upstream dies"):
            texts.extend(chunk.choices[0].delta.content for chunk in chunks)
    assert len(texts) in (0, 2)


def test_a_dropped_connection_is_tried_again_where_nothing_has_come(ask: Ask, scripts: ScriptedServer) -> None:
    """One more time, as retries says."""
    before = len(scripts.seen["drops"])
    assert ask("drops").content == WHOLE
    assert len(scripts.seen["drops"]) == before + 2


@pytest.mark.parametrize(
    ("name", "status", "message"), [("refuses", 400, "bad tool"), ("detail", 422, "no such field")]
)
def test_an_error_of_the_client_is_the_upstreams_word_and_no_reason_to_ask_another(
    ask: Ask, name: str, status: int, message: str
) -> None:
    """In its own bytes where it has OpenAI's form, which others get."""
    answer = ask(name, "good")
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == message
    assert answer.headers["x-specproxy-backend"] == name
    if name == "refuses":
        assert answer.content == b'{"error": {"message":"bad tool",  "type":"x","param":"tools","code":null}}'


def test_an_upstreams_429_says_when_to_come_back(ask: Ask) -> None:
    """With its own body and header, where no other backend is left."""
    answer = ask("busy")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.json()["error"]["message"] == "slow down"
    assert ask("loading").headers["retry-after"] == "3"


def test_when_all_fail_the_last_error_says_what_the_others_said(ask: Ask) -> None:
    """In one message."""
    message = ask("gone", "broken").json()["error"]["message"]
    assert "upstream broken: it answered 500: boom; before it, gone: upstream gone: no connection" in message


def test_a_breaker_opens_ignores_4xx_and_tries_again(
    ask: Ask, scripts: ScriptedServer, proxy: Any, eventually: Callable[..., None]
) -> None:
    """After three failures nothing is sent; a trial that succeeds ends that."""
    for _ in range(4):
        assert ask("detail").status_code == 422
    assert proxy.ready()["upstreams"]["detail"]["breaker"] == "closed"
    for _ in range(3):
        assert ask("trips").status_code == 502
    sent = len(scripts.seen["trips"])
    refused = ask("trips")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "upstream_open")
    assert 0 < int(refused.headers["retry-after-ms"]) <= 2000
    assert ask("trips", "good").content == WHOLE
    assert len(scripts.seen["trips"]) == sent
    assert proxy.metric("specproxy_upstream_breaker", upstream="trips", state="open") == 1
    assert proxy.metric("specproxy_upstream_breaker_opened_total", upstream="trips") == 1
    eventually(lambda: proxy.ready()["upstreams"]["trips"]["state"] == "up", 5)
    broken, scripts.scripts["trips"] = scripts.scripts["trips"], scripts.scripts["good"]
    assert ask("trips").content == WHOLE
    scripts.scripts["trips"] = broken
    assert proxy.ready()["upstreams"]["trips"]["breaker"] == "closed"
    states = [line["state"] for line in proxy.events("upstream's breaker") if line["upstream"] == "trips"]
    assert states == ["open", "half_open", "closed"]


def test_a_full_upstream_is_a_429_or_the_next_backends(http: httpx.Client, ask: Ask, proxy: Any) -> None:
    """Beyond max_connections, told at once, with a time to come back."""
    body = {"model": "m", "messages": [], "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body, headers={"x-to": "narrow"}) as running:
        pieces = running.iter_raw()
        next(pieces)
        refused = ask("narrow")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "max_connections" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after-ms"]) > 0
        assert ask("narrow", "good").content == WHOLE
        assert proxy.metric("specproxy_upstream_in_flight", upstream="narrow") == 1


def test_a_client_that_leaves_ends_the_request_upstream(
    http: httpx.Client, scripts: ScriptedServer, proxy: Any, eventually: Callable[..., None]
) -> None:
    """At once, though that upstream would go on for long; its place is free again."""
    body = {"model": "m", "messages": [], "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body, headers={"x-to": "left"}) as running:
        next(running.iter_raw())
    eventually(lambda: scripts.left["left"] == 1, 5, "the upstream's request ending")
    eventually(lambda: proxy.metric("specproxy_upstream_in_flight", upstream="left") == 0, 5)
    assert [line["status"] for line in proxy.events("request") if line["route"] == "left"] == [499]


def test_a_health_check_takes_an_upstream_out_and_brings_it_back(
    ask: Ask, scripts: ScriptedServer, proxy: Any, eventually: Callable[..., None]
) -> None:
    """Nothing is sent to it meanwhile."""

    def state() -> str:
        return str(proxy.ready()["upstreams"]["sick"]["state"])

    assert ask("sick").content == WHOLE
    scripts.health["sick"] = 503
    eventually(lambda: state() == "down", 5)
    refused = ask("sick")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "upstream_down")
    assert ask("sick", "good").content == WHOLE
    assert proxy.metric("specproxy_upstream_up", upstream="sick") == 0
    scripts.health["sick"] = 200
    eventually(lambda: state() == "up", 5)
    assert ask("sick").content == WHOLE


def test_a_prompt_beyond_the_engines_context_goes_to_the_upstream_behind_it(ask: Ask) -> None:
    """And the other way round: the engine answers what an upstream's context cannot hold."""
    long = [{"role": "user", "content": "one two three " * 2000}]
    answer = ask("engine", "good", messages=long)
    assert answer.content == WHOLE
    assert answer.headers["x-specproxy-fallback"] == "engine: context_length_exceeded"
    assert ask("engine", messages=long).status_code == 400
    back = ask("short", "engine")
    assert back.json()["choices"][0]["message"]["content"]
    assert back.headers["x-specproxy-backend"] == "engine"
    assert back.headers["x-specproxy-fallback"] == "short: upstream_context"
    assert ask("short").status_code == 400


def test_the_engine_answers_where_an_upstream_is_gone_and_stays_first_otherwise(ask: Ask) -> None:
    """The same text as without any upstream."""
    alone = ask("engine").json()["choices"]
    assert ask("gone", "engine").json()["choices"] == alone
    assert ask("engine", "good").json()["choices"] == alone


def test_an_engine_that_is_full_or_dead_leaves_requests_to_the_upstream_behind_it(
    proxy: Any, http: httpx.Client, ask: Ask, eventually: Callable[..., None]
) -> None:
    """Those that have no other backend are refused, or wait for it."""
    body = {"model": "house", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1500, "n": 4}
    long = body | {"stream": True, "ignore_eos": True}
    with http.stream("POST", "/v1/chat/completions", json=long, headers={"x-to": "engine"}) as running:
        pieces = running.iter_raw()
        assert next(pieces).startswith(b"data: {")
        assert ask("engine").status_code == 429
        spilled = ask("engine", "good")
        assert (spilled.content, spilled.headers["x-specproxy-fallback"]) == (WHOLE, "engine: rate_limit_exceeded")
    eventually(lambda: proxy.metric("specproxy_sequences_in_flight") == 0)
    os.kill(proxy.engine_pid, signal.SIGKILL)
    eventually(lambda: proxy.ready()["engine"]["state"] == "restarting")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waits = pool.submit(ask, "engine")
        assert ask("engine", "good").headers["x-specproxy-fallback"] == "engine: engine_unavailable"
        assert waits.result(60).status_code == 200
