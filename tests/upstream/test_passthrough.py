"""Requests through a specproxy to an upstream and back: nothing is changed but what must be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import openai
import pytest

from tests.upstream.conftest import CLIENT_KEY, KEY
from tests.upstream.scripted import GOOD, WHOLE, ScriptedServer

Ask = Callable[..., httpx.Response]
Stream = Callable[..., tuple[bytes, bool]]


def test_a_stream_is_byte_for_byte_the_upstreams(stream: Stream) -> None:
    """Comments, spacing, escapes, line ends and model name included, however its pieces were cut."""
    assert stream("good") == (GOOD, True)


def test_a_whole_answer_is_byte_for_byte_the_upstreams(ask: Ask) -> None:
    """With its length."""
    answer = ask("good")
    assert answer.content == WHOLE
    assert answer.headers["content-length"] == str(len(WHOLE))


def test_headers_go_through_but_for_those_of_a_connection_or_an_account(ask: Ask) -> None:
    """Ids are told apart; where it went, and that no exactness is promised, is said."""
    headers = ask("good").headers
    assert headers["x-ratelimit-remaining-requests"] == "7"
    assert "set-cookie" not in headers
    assert headers["x-specproxy-upstream-request-id"] == "theirs-1"
    assert headers["x-request-id"].startswith("req_")
    assert (headers["x-specproxy-backend"], headers["x-specproxy-exactness"]) == ("good", "upstream")
    assert headers["x-specproxy-route"] == "good"
    assert "x-specproxy-drafter" not in headers


def test_only_the_models_name_and_orders_to_us_are_changed_in_a_request(
    http: httpx.Client, scripts: ScriptedServer
) -> None:
    """Every other value keeps its bytes."""
    rest = b'"temperature": 1.0,"messages":[{"role":"user", "content":"\\u00e9"}],"n":1e0'
    sent = b'{"model":"ours",' + rest + b',"specproxy":{"shadow":false}}'
    headers = {"x-to": "good", "content-type": "application/json"}
    http.post("/v1/chat/completions?beta=1&x=%2F", content=sent, headers=headers)
    seen = scripts.seen["good"][-1]
    assert (
        seen.body.replace(b'"temperature":1.0', b'"temperature": 1.0') == b'{"model":"theirs/model-7b",' + rest + b"}"
    )
    assert seen.path == "/good/v1/chat/completions?beta=1&x=%2F"


def test_a_request_that_needs_no_change_goes_as_it_is(http: httpx.Client, scripts: ScriptedServer) -> None:
    """Spaces between values and doubled names included."""
    sent = b'{ "model" : "other",\n "x": 1, "x": 2, "messages": [] }'
    http.post("/v1/chat/completions", content=sent, headers={"x-to": "good", "content-type": "application/json"})
    assert scripts.seen["good"][-1].body == sent


def test_the_key_is_the_upstreams_and_never_the_clients(ask: Ask, scripts: ScriptedServer, proxy: Any) -> None:
    """One that has no key gets none; no log has either."""
    ask("good", headers={"Cookie": "c=d", "x-api-key": "k", "x-custom": "kept", "Connection": "x-hop", "x-hop": "1"})
    headers = {name.lower(): value for name, value in scripts.seen["good"][-1].headers.items()}
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["x-custom"] == "kept"
    assert not {"cookie", "x-api-key", "x-hop", "x-to"} & headers.keys() - {"x-to"}
    ask("refuses")
    assert "Authorization" not in scripts.seen["refuses"][-1].headers
    log = proxy.log.read_text()
    assert KEY not in log
    assert CLIENT_KEY not in log


def test_a_specproxy_behind_a_specproxy_streams_the_same_text(
    server: Any, proxy: Any, http: httpx.Client, eventually: Callable[..., None]
) -> None:
    """The SDK reads the same answer through both as from the engine itself; its counters of speculation show here."""
    body: dict[str, Any] = {
        "model": "house",
        "messages": [{"role": "user", "content": "Count from one to ten, twice."}],
        "max_tokens": 40,
        "seed": 3,
        "temperature": 0.8,
    }
    with (
        openai.OpenAI(base_url=server.base_url, api_key="unused", max_retries=0) as near,
        openai.OpenAI(base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0) as far,
    ):
        direct = near.chat.completions.create(**body).choices[0].message.content
        chunks = far.chat.completions.create(**body, stream=True, extra_headers={"x-to": "house"})
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == direct
    total = server.metric("vllm:spec_decode_num_draft_tokens_total")
    assert total > 0
    eventually(lambda: proxy.metric("specproxy_upstream_draft_tokens_total", upstream="house") == total)
    accepted = server.metric("vllm:spec_decode_num_accepted_tokens_per_pos_total", position="0")
    assert proxy.metric("specproxy_upstream_accepted_tokens_at_total", upstream="house", position="0") == accepted


def test_usage_of_an_upstreams_answers_is_booked(stream: Stream, ask: Ask, proxy: Any) -> None:
    """Tokens, finish reason and the time to the first byte, streamed or not; the log line has them."""
    before = proxy.metric("specproxy_generation_tokens_total", route="good")
    stream("good")
    ask("good")
    assert proxy.metric("specproxy_generation_tokens_total", route="good") == before + 6
    assert proxy.metric("specproxy_upstream_first_byte_seconds_count", upstream="good") >= 2
    line = [line for line in proxy.events("request") if line.get("route") == "good"][-2]
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish_reasons"]) == (11, 3, ["stop"])
    assert line["ttft_s"] > 0


def test_llama_cpps_and_sglangs_counts_of_an_answer_are_booked(ask: Ask, proxy: Any) -> None:
    """As far as each says them."""
    ask("llama")
    ask("sglang")
    metric = proxy.metric
    assert metric("specproxy_upstream_draft_tokens_total", upstream="llama") == 20
    assert metric("specproxy_upstream_accepted_tokens_total", upstream="llama") == 12
    assert metric("specproxy_upstream_drafts_total", upstream="sglang") == 4
    assert metric("specproxy_upstream_accepted_tokens_total", upstream="sglang") == 6


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/embeddings"), ("GET", "/v1/files/x?a=b")])
def test_what_the_engine_has_not_goes_to_the_routes_upstream(
    http: httpx.Client, scripts: ScriptedServer, method: str, path: str
) -> None:
    """Whatever the method; the name of the model is changed there too."""
    body = {"model": "ours", "input": "x"} if method == "POST" else None
    answer = http.request(method, path, json=body, headers={"x-to": "good"})
    assert (answer.status_code, answer.content) == (200, WHOLE)
    seen = scripts.seen["good"][-1]
    assert (seen.method, seen.path) == (method, f"/good{path}")
    if body is not None:
        assert msgspec.json.decode(seen.body)["model"] == "theirs/model-7b"


def test_without_an_upstream_the_rest_of_the_api_is_a_404(http: httpx.Client) -> None:
    """In OpenAI's form, naming the route; our own paths still say how they are asked."""
    answer = http.post("/v1/embeddings", json={"model": "house", "input": "x"})
    assert answer.status_code == 404
    assert "route default" in answer.json()["error"]["message"]
    wrong = http.get("/v1/chat/completions", headers={"x-to": "good"})
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert http.get("/v1/%2e%2e/metrics", headers={"x-to": "good"}).status_code == 404


def test_models_of_upstreams_are_listed(http: httpx.Client) -> None:
    """Beside the engine's, by the names that requests use."""
    listed = {model["id"]: model["owned_by"] for model in http.get("/v1/models").json()["data"]}
    assert listed == {"house": "specproxy", "ours": "good"}
    assert http.get("/v1/models/ours").json()["owned_by"] == "good"


def test_a_condition_on_prompt_tokens_holds_for_what_the_engine_could_not_take(ask: Ask) -> None:
    """A prompt beyond the engine's context is counted, and goes where its length says."""
    long = [{"role": "user", "content": "one two three " * 2000}]
    assert ask("engine", headers={"x-long": "1"}, messages=long).headers["x-specproxy-backend"] == "good"
    assert ask("engine", headers={"x-long": "1"}).headers["x-specproxy-backend"] == "engine"


def test_ready_shows_every_upstream(proxy: Any) -> None:
    """State, breaker and connections, and nothing secret."""
    upstreams = proxy.ready()["upstreams"]
    assert upstreams["good"]["state"] == "up"
    assert upstreams["good"]["breaker"] == "closed"
    assert upstreams["narrow"]["max_connections"] == 1
    assert KEY not in proxy.get("/ready").text


def test_an_answer_of_a_megabyte_is_not_held_up_and_not_changed(ask: Ask) -> None:
    """It has the length that the upstream said."""
    answer = ask("large")
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.content == b'{"x":"' + b"y" * 2**20 + b'"}'


async def test_more_than_a_hundred_requests_are_at_an_upstream_at_a_time(proxy: Any) -> None:
    """No library's limit, and not the engine's queue, which takes four here."""
    body = {"model": "m", "messages": []}
    headers = {"x-to": "crowd", "Authorization": f"Bearer {CLIENT_KEY}"}
    async with httpx.AsyncClient(base_url=proxy.url, limits=httpx.Limits(max_connections=None), timeout=60) as client:
        posts = [client.post("/v1/chat/completions", json=body, headers=headers) for _ in range(120)]
        answers = await asyncio.gather(*posts)
    assert {answer.status_code for answer in answers} == {200}
