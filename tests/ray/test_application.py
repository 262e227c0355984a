"""The application on a cluster of this machine: what clients get, where requests go, and what a death costs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import pytest

from tests.ray.conftest import DRAFTERS, REPLICA, Cluster, text_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def chat(text: str, **more: Any) -> dict[str, Any]:
    """A request with a first message of its own."""
    return {"model": "house", "messages": [{"role": "user", "content": text}], "max_tokens": 24, "seed": 7} | more


LONG = {"ignore_eos": True, "max_tokens": 700, "temperature": 1.0}
"""Some seconds of text that is never the same for two seeds."""


@pytest.fixture(scope="module")
def alone(start_server: Callable[..., Any], cluster: Cluster) -> Any:
    """One server beside the cluster, with the same settings."""
    drafters = [part for drafter in DRAFTERS for part in ("--drafter", drafter)]
    return start_server("--policies", str(cluster.folder / "policies"), *drafters)


def ask(base: str, body: dict[str, Any]) -> httpx.Response:
    """Of whichever server."""
    return httpx.post(f"{base}/v1/chat/completions", json=body, timeout=60, trust_env=False)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_is_that_of_one_server(cluster: Cluster, alone: Any, *, stream: bool, temperature: float) -> None:
    """Whole and streamed, greedy and drawn: the cluster answers what one server does."""
    for text in ("Tell me of rivers.", "Write a function that adds.", "What is the time?"):
        body = chat(text, temperature=temperature, stream=stream)
        assert text_of(ask(cluster.url, body)) == text_of(ask(alone.url, body))


def test_what_begins_alike_goes_to_one_replica(cluster: Cluster) -> None:
    """Turns of a conversation meet at one replica, and find their pages there; conversations are spread over both."""
    cluster.both()
    seen = set()
    for i in range(8):
        begin = [{"role": "user", "content": f"Conversation {i}: " + "all about trains. " * 12}]
        first = cluster.post(chat("", messages=begin, max_tokens=4))
        turns = [*begin, {"role": "assistant", "content": text_of(first)}, {"role": "user", "content": "Go on."}]
        second = cluster.post(chat("", messages=turns, max_tokens=4))
        assert second.headers[REPLICA] == first.headers[REPLICA]
        assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        seen.add(first.headers[REPLICA])
    assert len(seen) == 2


def test_load_above_the_bound_goes_elsewhere(cluster: Cluster) -> None:
    """One prefix that everybody asks for at once is answered by both replicas."""
    cluster.both()
    body = chat("The same for all.", **LONG | {"max_tokens": 150})
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: cluster.post(body), range(10)))
    assert len({text_of(answer) for answer in answers}) == 1
    assert len({answer.headers[REPLICA] for answer in answers}) == 2


def test_a_stream_goes_on_when_its_replica_dies(cluster: Cluster) -> None:
    """A replica that is killed in a stream is replaced by the other: the client gets the undisturbed text, under one
    id, and nothing twice; also where the seed was drawn."""
    cluster.both()
    body = chat("Tell a long story of a stream.", **LONG)
    del body["seed"]
    with cluster.stream(body) as response:
        name, seed = response.headers[REPLICA], int(response.headers["x-specproxy-seed"])
        pieces = []
        for line in response.iter_lines():
            pieces.append(line)
            if len(pieces) == 12:
                cluster.kill(name)
    broken = httpx.Response(200, headers=response.headers, content="\n".join(pieces).encode())
    assert cluster.events("replica lost in a stream")[-1]["replica"] == name
    calm = cluster.post(body | {"seed": seed})
    assert text_of(broken) == text_of(calm)
    assert calm.headers[REPLICA] != name


def test_a_request_before_its_first_byte_goes_elsewhere(cluster: Cluster) -> None:
    """A whole answer whose replica is killed is made by the other; Ray then starts another in its place."""
    before = cluster.both()
    body = chat("A long story that is not streamed.", **LONG)
    name = cluster.post(body | {"max_tokens": 1}).headers[REPLICA]
    timer = threading.Timer(0.4, cluster.kill, [name])
    timer.start()
    answer = cluster.post(body)
    timer.join()
    assert cluster.events("replica lost")[-1]["replica"] == name
    assert answer.headers[REPLICA] in set(before) - {name}
    assert text_of(answer) == text_of(cluster.post(body))
    assert set(cluster.both()) != set(before)


def test_a_client_that_leaves_ends_its_request(cluster: Cluster, eventually: Callable[..., None]) -> None:
    """A stream that its client closes does not go on in the replica."""
    with cluster.stream(chat("Nobody waits for this.", **LONG | {"max_tokens": 1500})) as response:
        next(response.iter_lines())
        request = response.headers["x-request-id"]

    def left() -> bool:
        return any(line["request_id"] == request and line["status"] == 499 for line in cluster.events("request"))

    eventually(left, timeout_s=10, what="the end of the request")


def test_a_stream_that_fails_has_no_end(cluster: Cluster) -> None:
    """A stream that its replica breaks off, here as its time is up, ends with the error and without an end."""
    body = chat("Too long.", metadata={"kind": "hurried"}, **LONG | {"max_tokens": 1800})
    with cluster.stream(body) as response:
        pieces = response.iter_bytes()
        got = b"".join(until_broken(pieces))
    last = msgspec.json.decode(got.split(b"data: ")[-1])
    assert last["error"]["code"] == "timeout"


def until_broken(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """What came before the connection was cut; fails where it was not."""
    try:
        yield from pieces
    except httpx.RemoteProtocolError:
        return
    pytest.fail("the stream has an end")


def test_errors_have_the_form_of_openai(cluster: Cluster) -> None:
    """What a replica refuses, and what the ingress does, are both an error object with its four keys."""
    bad = cluster.post(chat("Hello.", model="other"))
    assert (bad.status_code, bad.json()["error"]["code"]) == (404, "model_not_found")
    broken = httpx.post(f"{cluster.url}/v1/chat/completions", content=b"{", timeout=20, trust_env=False)
    assert (broken.status_code, set(broken.json()["error"])) == (400, {"message", "type", "param", "code"})
    nowhere = httpx.get(f"{cluster.url}/metrics", timeout=20, trust_env=False)
    assert (nowhere.status_code, nowhere.json()["error"]["type"]) == (404, "invalid_request_error")
    models = httpx.get(f"{cluster.url}/v1/models", timeout=20, trust_env=False)
    assert models.json()["data"][0]["id"] == "house"
