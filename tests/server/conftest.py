"""Clients and requests for the server's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    """The stock SDK, with nothing changed but where it sends, and no retries."""
    with openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as one:
        yield one


@pytest.fixture
async def async_client(base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The same, asynchronous."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as one:
        yield one


@pytest.fixture
def http(base_url: str) -> Iterator[httpx.Client]:
    """Plain HTTP to the shared server."""
    with httpx.Client(base_url=base_url.removesuffix("/v1"), timeout=60) as one:
        yield one


@pytest.fixture(scope="session")
def chat_body() -> Callable[..., dict[str, Any]]:
    """A small chat request; keywords replace or add fields."""

    def body(**fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Write a Python function that adds two numbers."}]
        return {"model": "house", "messages": messages, "max_tokens": 24, "temperature": 0.8, "seed": 7} | fields

    return body
