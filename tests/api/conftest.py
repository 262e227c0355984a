"""The bundled model as requests see it, and small helpers to send deltas through an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from specproxy.server.api import AnswerMeta, ApiContext, ParsedRequest, parse_chat, parse_completion
from specproxy.vocabulary import Delta, SequenceStats, TokenLogprob

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


class Wire:
    """An engine's side and a client's side of one answer."""

    EOS = 2
    STATS = SequenceStats(prompt_tokens=9, cached_tokens=4)

    def __init__(self, meta: AnswerMeta) -> None:
        self._meta = meta

    @staticmethod
    def logprob(token: int) -> TokenLogprob:
        """A chosen token with two alternatives."""
        return TokenLogprob(token, -0.5, [(token, -0.5), (token + 1, float("-inf"))])

    def deltas(self, request: ParsedRequest, ids: list[int], sizes: list[int], reason: Any = "stop") -> list[Delta]:
        """``ids`` as deltas of these sizes (the rest in a last one), with logprobs if the request wants them."""
        cuts = [0]
        for size in sizes:
            cuts.append(min(cuts[-1] + size, len(ids)))
        cuts.append(len(ids))
        made = [Delta("x", ids[a:b]) for a, b in pairwise(cuts)]
        if request.params.logprobs is not None:
            for delta in made:
                delta.logprobs = [self.logprob(token) for token in delta.tokens]
        if request.params.prompt_logprobs is not None:
            made[0].prompt_logprobs = [self.logprob(token) for token in request.prompts[0].ids[1:]]
        made[-1].finish_reason, made[-1].stats = reason, self.STATS
        made[-1].stop_token = ids[-1] if reason == "stop" else None
        return made

    def run(self, request: ParsedRequest, choices: list[list[Delta]], specproxy: Any = None) -> bytes:
        """Push the deltas of every choice, one after another, and finish."""
        answer = request.answer(self._meta)
        data = b"".join(answer.push(index, delta).data for index, deltas in enumerate(choices) for delta in deltas)
        assert answer.done
        return data + answer.finish(specproxy)

    @staticmethod
    def events(data: bytes) -> list[dict[str, Any]]:
        """Chunks of a stream that ends as it should."""
        lines = data.decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]

    @staticmethod
    def text(chunks: list[dict[str, Any]], index: int = 0) -> str:
        """All content of one choice."""
        parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        return "".join(part["delta"].get("content", "") if "delta" in part else part["text"] for part in parts)


@pytest.fixture(scope="session")
def wire(meta: AnswerMeta) -> Wire:
    """Both sides of an answer."""
    return Wire(meta)
