"""The bundled model as requests see it, and small helpers to send deltas through an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specproxy.server.api import AnswerMeta, ApiContext, ParsedRequest, parse_chat, parse_completion

Parse = Callable[..., ParsedRequest]


@pytest.fixture(scope="session")
def context() -> ApiContext:
    """The bundled target with a context of 2048 tokens and one alias."""
    folder = Path(__file__).parents[2] / "specproxy" / "models" / "house" / "target"
    return ApiContext.load(folder, "house", 2048, ("gpt-4o-mini",))


@pytest.fixture(scope="session")
def chat(context: ApiContext) -> Parse:
    """Parse a chat body given by its fields; messages and model have defaults."""

    def parse(**fields: Any) -> ParsedRequest:
        body = {"model": "house", "messages": [{"role": "user", "content": "Hi"}]} | fields
        return parse_chat(json.dumps(body).encode(), context)

    return parse


@pytest.fixture(scope="session")
def completion(context: ApiContext) -> Parse:
    """Parse a completion body given by its fields; prompt and model have defaults."""

    def parse(**fields: Any) -> ParsedRequest:
        return parse_completion(json.dumps({"model": "house", "prompt": "Hi"} | fields).encode(), context)

    return parse


@pytest.fixture(scope="session")
def meta() -> AnswerMeta:
    """What every chunk repeats."""
    return AnswerMeta("id-1", 1700000000, "fp_1")
