"""Bad input: each a clear error in OpenAI's form, and a server that lives on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

Body = Callable[..., dict[str, Any]]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def check_error(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The four keys, the status, the id; returns the error object."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert response.headers["x-request-id"]
    if code is not None:
        assert error["code"] == code
    return error


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"text"', b"\xff\xfe", b'{"a": NaN}', b"null"])
def test_a_broken_body_is_a_400(http: httpx.Client, body: bytes) -> None:
    """What is not a JSON object is refused as such."""
    check_error(http.post(CHAT, content=body), 400)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", "hello"),
        ("messages", []),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "wizard", "content": "x"}]),
        ("temperature", "hot"),
        ("temperature", -1),
        ("max_tokens", 0),
        ("max_tokens", "many"),
        ("n", 0),
        ("top_p", 2),
        ("stop", ["x"] * 10_000),
        ("logit_bias", {"not-an-id": 1}),
        ("seed", "lucky"),
        ("stream", "yes"),
        ("top_logprobs", 50),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(http: httpx.Client, chat_body: Body, field: str, value: object) -> None:
    """The client learns which field to mend."""
    error = check_error(http.post(CHAT, json=chat_body(**{field: value})), 400)
    assert field in f"{error['param']} {error['message']}"


def test_a_nan_temperature_is_a_400(http: httpx.Client) -> None:
    """NaN is no JSON, and no temperature."""
    body = b'{"model": "house", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}'
    check_error(http.post(CHAT, content=body), 400)


@pytest.mark.parametrize("ids", [[-1], [10**9], [1.5], [2**70]])
def test_invalid_token_ids_are_a_400(http: httpx.Client, ids: list[object]) -> None:
    """Ids outside the vocabulary never reach the engine."""
    check_error(http.post(COMPLETIONS, json={"model": "house", "prompt": ids, "max_tokens": 1}), 400)


def test_a_prompt_beyond_the_context_is_a_400_with_its_code(http: httpx.Client, chat_body: Body) -> None:
    """The house model has 2048 tokens."""
    long = [{"role": "user", "content": "word " * 5000}]
    check_error(http.post(CHAT, json=chat_body(messages=long)), 400, "context_length_exceeded")


def test_an_unknown_model_is_a_404(http: httpx.Client, chat_body: Body) -> None:
    """With the code that clients look for."""
    check_error(http.post(CHAT, json=chat_body(model="nope")), 404, "model_not_found")


def test_an_unknown_path_is_a_404_and_a_wrong_method_a_405(http: httpx.Client) -> None:
    """In OpenAI's form under any path; a 405 says what is allowed."""
    check_error(http.get("/v1/nothing/here"), 404)
    check_error(http.post("/elsewhere", json={}), 404)
    wrong = http.get(CHAT)
    check_error(wrong, 405)
    assert wrong.headers["allow"] == "POST"


def test_a_two_megabyte_body_is_fine(http: httpx.Client, chat_body: Body) -> None:
    """Twice aiohttp's default limit."""
    response = http.post(CHAT, json=chat_body(max_tokens=1, metadata_of_mine="x" * 2**21))
    assert response.status_code == 200


def test_a_fifty_megabyte_body_is_refused_at_once(http: httpx.Client) -> None:
    """By its announced length, before it is read."""
    started = time.perf_counter()
    check_error(http.post(CHAT, content=b" " * 50 * 2**20), 413, "request_too_large")
    assert time.perf_counter() - started < 5


def test_an_unannounced_large_body_is_refused_while_it_is_read(http: httpx.Client) -> None:
    """A chunked body is counted."""

    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 2**20

    check_error(http.post(CHAT, content=chunks()), 413, "request_too_large")


async def test_two_hundred_clients_at_once_are_all_answered(base_url: str, chat_body: Body) -> None:
    """The default queue holds them; nobody is refused."""
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=base_url, timeout=100, limits=limits) as client:
        posts = [client.post("/chat/completions", json=chat_body(max_tokens=2, seed=i)) for i in range(200)]
        answers = await asyncio.gather(*posts)
    assert {answer.status_code for answer in answers} == {200}


def test_the_server_lives_on(http: httpx.Client, chat_body: Body) -> None:
    """After all of the above."""
    assert http.get("/health").status_code == 200
    assert http.post(CHAT, json=chat_body()).status_code == 200
