"""Keys with limits on a real server: refused as OpenAI refuses, counted to the token."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

Body = Callable[..., dict[str, Any]]
CHAT = "/v1/chat/completions"
LIMITS = {
    "rare": "requests_per_s=0.001",
    "small": "tokens_per_min=200",
    "single": "concurrent=1",
    "streams": "tokens_per_min=500",
    "free": "",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Any]) -> Any:
    """A server with a key of each kind; bodies have to arrive within half a second."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(
        "".join(f"{name}: {hashlib.sha256(key(name).encode()).hexdigest()} {more}\n" for name, more in LIMITS.items())
    )
    return start_server("--keys-file", str(file), "--set", "server.body_timeout_s=0.5")


def key(name: str) -> str:
    """A key's text."""
    return f"sk-{name}"


def ask(own: Any, name: str, body: dict[str, Any], path: str = CHAT) -> httpx.Response:
    """One request with this key."""
    headers = {"Authorization": f"Bearer {key(name)}"}
    return httpx.post(own.url + path, json=body, headers=headers, timeout=60, trust_env=False)


def test_too_many_requests_are_refused_as_openai_does(own: Any, chat_body: Body) -> None:
    """429 in OpenAI's form, with the headers that say when to come back; the SDK raises what it raises for OpenAI."""
    first = ask(own, "rare", chat_body(max_tokens=2))
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert first.headers["x-ratelimit-reset-requests"] in ("16m40s", "16m39s")
    second = ask(own, "rare", chat_body(max_tokens=2))
    error = second.json()["error"]
    assert second.status_code == 429
    assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
    assert 900 < int(second.headers["retry-after"]) <= 1000
    assert second.headers["x-should-retry"] == "true"
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    client = openai.OpenAI(base_url=f"{own.url}/v1", api_key=key("rare"), max_retries=0)
    with client:
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**chat_body())
        assert client.models.list().data, "asking what there is costs nothing"
    assert own.events("request")[-1]["key_id"] == "rare"


def test_tokens_are_counted_exactly(own: Any, chat_body: Body) -> None:
    """What is left is the limit less what the answer says that it used; a stream counts when it has ended."""
    answer = ask(own, "small", chat_body(max_tokens=8, ignore_eos=True))
    used = answer.json()["usage"]["total_tokens"]
    left = int(answer.headers["x-ratelimit-remaining-tokens"])
    assert 200 - used <= left <= 200 - used + 4, "and what has come back meanwhile, 3.3 a second"
    assert ask(own, "small", chat_body(max_tokens=200, ignore_eos=True)).status_code == 200
    refused = ask(own, "small", chat_body())
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "tokens"
    streamed = ask(own, "streams", chat_body(max_tokens=400, ignore_eos=True, stream=True))
    assert streamed.headers["x-ratelimit-remaining-tokens"] == "500"
    after = ask(own, "streams", chat_body(max_tokens=1))
    assert int(after.headers["x-ratelimit-remaining-tokens"]) < 100


def test_requests_at_once(own: Any, chat_body: Body) -> None:
    """Of four at the same time one is answered by a key that may have one; another key is not in its way."""
    body = chat_body(max_tokens=300, ignore_eos=True)
    with ThreadPoolExecutor(5) as threads:
        answers = list(threads.map(lambda name: ask(own, name, body), ["single"] * 4 + ["free"]))
    codes = [answer.status_code for answer in answers]
    assert sorted(codes[:4]) == [200, 429, 429, 429]
    assert codes[4] == 200
    assert not [name for name in answers[4].headers if name.startswith("x-ratelimit")]
    assert ask(own, "single", chat_body(max_tokens=1)).status_code == 200


def test_a_refused_request_costs_no_tokens(own: Any) -> None:
    """A body that is no request, or one that never comes, takes nothing but its place in the count."""
    assert ask(own, "streams", {"messages": 3}).status_code == 400
    host, port = own.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key('single')}\r\n"
            "Content-Length: 100\r\n\r\n{".encode()
        )
        assert b" 408 " in link.recv(4096).split(b"\r\n")[0], "a body has a time limit"
    assert ask(own, "single", {"messages": 3}).status_code == 400, "and its place is free again"


def test_limits_do_not_touch_keys_in_a_file_without(own: Any, chat_body: Body) -> None:
    """Ten quick requests of a key without limits are answered; one without a key is refused for that."""
    assert {ask(own, "free", chat_body(max_tokens=1)).status_code for _ in range(10)} == {200}
    assert ask(own, "nobody", chat_body()).status_code == 401
