"""A server with settings of its own: keys, a tiny queue, time limits, reloads, and in the end a drain."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

Body = Callable[..., dict[str, Any]]
KEY = "sk-test-key"
AUTH = {"Authorization": f"Bearer {KEY}"}
DRAIN_S = 2.0

POLICY = """\
version: 1
defaults: {override: true}
routes:
  - name: hurried
    match: {header: {x-test: hurried}}
    limits: {timeout_s: 0.5}
  - name: far
    match: {header: {x-test: far}}
    backend: elsewhere
  - name: kept
    match: {header: {x-test: kept}}
    capture: on
  - name: default
    speculate: {k: {max: 4}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policies, keys and the start configuration of the server."""
    folder = tmp_path_factory.mktemp("operations")
    (folder / "policies").mkdir()
    (folder / "policies" / "10-all.yaml").write_text(POLICY)
    (folder / "keys.txt").write_text(f"alice: {hashlib.sha256(KEY.encode()).hexdigest()}\n")
    (folder / "specproxy.yaml").write_text(
        f"policies: {folder}/policies\nkeys: {{file: {folder}/keys.txt}}\n"
        f"server: {{max_queue: 2, drain_s: {DRAIN_S}, keepalive_s: 0.05}}\n"
        "upstreams: {elsewhere: {url: 'http://127.0.0.1:9/v1'}}\n"
    )
    return folder


@pytest.fixture(scope="module")
def own(folder: Path, start_server: Callable[..., Any]) -> Any:
    """The server."""
    return start_server("--config", str(folder / "specproxy.yaml"))


@pytest.fixture
def http(own: Any) -> Iterator[httpx.Client]:
    """Plain HTTP with the key."""
    with httpx.Client(base_url=own.url, timeout=60, headers=AUTH) as one:
        yield one


@pytest.fixture
def long_body(chat_body: Body) -> dict[str, Any]:
    """An answer that takes its time."""
    return chat_body(stream=True, max_tokens=1900, ignore_eos=True)


def test_a_key_is_needed_and_its_id_goes_on(own: Any, http: httpx.Client, chat_body: Body) -> None:
    """No key and a wrong one are 401; the log has the id, never the key."""
    for key in ("wrong", KEY[:-1]):
        with openai.OpenAI(base_url=own.base_url, api_key=key, max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                client.chat.completions.create(**chat_body())
            assert refused.value.code == "invalid_api_key"
    assert httpx.get(f"{own.url}/v1/models").status_code == 401
    assert httpx.get(f"{own.url}/health").status_code == 200
    assert http.post("/v1/chat/completions", json=chat_body()).status_code == 200
    assert own.events("request")[-1]["key_id"] == "alice"
    assert KEY not in own.log.read_text()


def test_without_a_directory_no_answer_is_kept(own: Any, http: httpx.Client, chat_body: Body) -> None:
    """Whatever the route says; the log tells who wonders."""
    answer = http.post("/v1/chat/completions", json=chat_body(), headers={"x-test": "kept"})
    assert answer.headers["x-specproxy-route"] == "kept"
    warnings = [event["warning"] for event in own.events("policy warning")]
    assert any("route kept: nothing is kept" in warning for warning in warnings)
    assert own.metric("specproxy_captured_records_total") == 0


def test_a_full_queue_is_a_429_that_says_when_to_come_back(
    own: Any, http: httpx.Client, chat_body: Body, long_body: dict[str, Any], eventually: Callable[..., None]
) -> None:
    """And the SDK, which listens to that, gets its answer by itself."""
    with (
        http.stream("POST", "/v1/chat/completions", json=long_body) as first,
        http.stream("POST", "/v1/chat/completions", json=long_body) as second,
    ):
        assert first.status_code == second.status_code == 200
        refused = http.post("/v1/chat/completions", json=chat_body())
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert refused.headers["x-should-retry"] == "true"
        assert 50 <= int(refused.headers["retry-after-ms"]) <= 45_000
        with (
            openai.OpenAI(base_url=own.base_url, api_key=KEY, max_retries=0) as once,
            pytest.raises(openai.RateLimitError),
        ):
            once.chat.completions.create(**chat_body())
        retried: list[Any] = []
        before = own.metric("specproxy_requests_total", status="429")
        asking = threading.Thread(target=lambda: retried.append(ask_with_retries(own, chat_body())))
        asking.start()
        eventually(lambda: own.metric("specproxy_requests_total", status="429") > before, 10, "the first refusal")
    asking.join(60)
    assert retried[0].choices[0].message.content


def ask_with_retries(own: Any, body: dict[str, Any]) -> Any:
    """An SDK that tries again as often as it must."""
    with openai.OpenAI(base_url=own.base_url, api_key=KEY, max_retries=20) as client:
        return client.chat.completions.create(**body)


def test_more_answers_than_places_can_never_be_admitted(http: httpx.Client, chat_body: Body) -> None:
    """A 400, as no retry would help."""
    refused = http.post("/v1/chat/completions", json=chat_body(n=3))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "n"


def test_a_request_beyond_its_time_is_a_504_before_the_first_byte(http: httpx.Client, chat_body: Body) -> None:
    """The route's timeout_s binds, and the client is told not to try again."""
    late = http.post(
        "/v1/chat/completions", json=chat_body(max_tokens=1900, ignore_eos=True), headers={"x-test": "hurried"}
    )
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "timeout"
    assert late.headers["x-should-retry"] == "false"
    assert late.headers["x-specproxy-route"] == "hurried"


def test_a_stream_beyond_its_time_ends_with_an_error_and_never_cleanly(
    own: Any, http: httpx.Client, long_body: dict[str, Any]
) -> None:
    """An error chunk, no [DONE], a broken body; the SDK raises."""
    with http.stream("POST", "/v1/chat/completions", json=long_body, headers={"x-test": "hurried"}) as response:
        seen = read_until_broken(response)
    assert response.status_code == 200
    assert b'data: {"error":{"message"' in seen
    assert b"[DONE]" not in seen
    assert own.events("request")[-1]["status"] == 504
    body = {name: value for name, value in long_body.items() if name != "ignore_eos"}
    with openai.OpenAI(base_url=own.base_url, api_key=KEY, max_retries=0) as client, pytest.raises(openai.APIError):
        for _ in client.chat.completions.create(
            **body, extra_body={"ignore_eos": True}, extra_headers={"x-test": "hurried"}
        ):
            pass


def read_until_broken(response: httpx.Response) -> bytes:
    """What a body has before it breaks off; it must."""
    seen: list[bytes] = []
    with pytest.raises(httpx.RemoteProtocolError):
        seen.extend(response.iter_bytes())
    return b"".join(seen)


def test_a_stream_that_has_to_wait_is_kept_alive_by_comments(http: httpx.Client, chat_body: Body) -> None:
    """Comment lines and nothing else: named events and ids break clients."""
    long = [{"role": "user", "content": "one two three four " * 400}]
    raw = http.post("/v1/chat/completions", json=chat_body(messages=long, max_tokens=2, stream=True)).content
    assert raw.startswith(b": keep-alive\n\n")
    kinds = {line.split(b":")[0] for line in raw.split(b"\n") if line}
    assert kinds == {b"", b"data"}


def test_a_route_to_an_upstream_that_is_not_there_says_so(http: httpx.Client, chat_body: Body) -> None:
    """By its name, as a gateway does."""
    refused = http.post("/v1/chat/completions", json=chat_body(), headers={"x-test": "far"})
    assert refused.status_code == 502
    assert "elsewhere" in refused.json()["error"]["message"]


def test_policies_are_reloaded_and_a_broken_set_keeps_the_old_one(
    own: Any, folder: Path, http: httpx.Client, chat_body: Body, eventually: Callable[..., None]
) -> None:
    """On a change and on SIGHUP; what is wrong shows in /ready, the log and a metric."""
    file = folder / "policies" / "10-all.yaml"

    def k() -> str:
        return http.post("/v1/chat/completions", json=chat_body(max_tokens=1)).headers["x-specproxy-k"]

    assert k() == "0-4"
    file.write_text(POLICY.replace("max: 4", "max: 3"))
    eventually(lambda: k() == "0-3", 15, "the reload after a change")
    file.write_text(POLICY.replace("max: 4", "max: four"))
    own.process.send_signal(signal.SIGHUP)
    eventually(lambda: own.ready()["policy"]["error"], 15, "the refusal")
    assert "10-all.yaml" in own.ready()["policy"]["error"]
    assert own.ready()["status"] == "ready"
    assert own.metric("specproxy_policy_reload_errors_total") >= 1
    assert own.events("policies refused; the old ones stay")
    assert k() == "0-3"
    file.write_text(POLICY)
    own.process.send_signal(signal.SIGHUP)
    eventually(lambda: k() == "0-4", 15, "the repair")
    assert own.ready()["policy"]["error"] is None


def test_a_drain_lets_answers_end_refuses_new_ones_and_exits_with_0(
    own: Any, http: httpx.Client, chat_body: Body, long_body: dict[str, Any], eventually: Callable[..., None]
) -> None:
    """SIGTERM: a short answer ends well, one that outlasts the drain is cut with an error, the exit code is 0."""
    short = chat_body(stream=True, max_tokens=60, ignore_eos=True)
    # With speculation it would end within the drain: the demo model repeats itself. Logprobs make it longer still.
    longest = long_body | {"specproxy": {"speculate": "off"}, "logprobs": True, "top_logprobs": 20}
    with (
        http.stream("POST", "/v1/chat/completions", json=longest) as lasting,
        http.stream("POST", "/v1/chat/completions", json=short) as ending,
    ):
        own.process.send_signal(signal.SIGTERM)
        eventually(lambda: own.get("/ready").status_code == 503, 5, "draining")
        assert own.ready()["status"] == "draining"
        refused = http.post("/v1/chat/completions", json=chat_body())
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert refused.headers["retry-after"]
        assert b"[DONE]" in ending.read()
        seen = read_until_broken(lasting)
        assert b"shutting down" in seen
        assert b"[DONE]" not in seen
    started = time.monotonic()
    assert own.process.wait(15) == 0
    assert time.monotonic() - started < 10
