"""One request over HTTP, and its answer in one form, streamed or not, chat or completion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass
class Reply:
    """``visible``: all that speculation must not change. ``cached_tokens`` and ``ours``, the ``specproxy`` object,
    may differ."""

    visible: dict[str, Any]
    cached_tokens: int
    ours: dict[str, Any]
    headers: httpx.Headers


@dataclass
class _Choice:
    """A choice so far. ``logprobs``: the lists of either form by name."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, part: dict[str, Any]) -> None:
        """A chunk's part of the choice, or the whole of it."""
        message = part.get("delta") or part.get("message") or {}
        self.text += part.get("text") or message.get("content") or ""
        self.token_ids += part.get("token_ids") or []
        for name, entries in (part.get("logprobs") or {}).items():
            if entries is not None:
                self.logprobs.setdefault(name, []).extend(entries)
        self.finish_reason = part.get("finish_reason") or self.finish_reason
        self.stop_reason = part.get("stop_reason", self.stop_reason)


async def exchange(
    client: httpx.AsyncClient,
    endpoint: str,
    body: dict[str, Any],
    wish: str,
    on_chunk: Callable[[], None] | None = None,
) -> Reply:
    """Post ``body`` to ``endpoint`` (chat or completions), asking to speculate as in ``wish``.

    ``on_chunk`` is called after every chunk of a stream. Raises AssertionError where it is refused or breaks off.
    """
    headers = {"x-specproxy-speculate": wish}
    pieces = []
    async with client.stream("POST", PATHS[endpoint], json=body, headers=headers) as response:
        if response.status_code != 200 or not body.get("stream"):
            pieces.append(msgspec.json.decode(await response.aread()))
        else:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    pieces.append(msgspec.json.decode(line[6:]))
                    if on_chunk is not None:
                        on_chunk()
    if response.status_code != 200 or "error" in pieces[-1]:
        raise AssertionError(f"{response.status_code} for {wish}: {pieces[-1]}")
    return _reply(pieces, response.headers)


def _reply(pieces: list[dict[str, Any]], headers: httpx.Headers) -> Reply:
    choices: dict[int, _Choice] = {}
    seen: dict[str, Any] = {"prompt": None, "usage": None, "specproxy": {}}
    for piece in pieces:
        for part in piece["choices"]:
            choices.setdefault(part["index"], _Choice()).add(part)
            seen["prompt"] = part.get("prompt_token_ids") or seen["prompt"]
        seen["prompt"] = piece.get("prompt_token_ids") or seen["prompt"]
        seen["usage"] = piece.get("usage") or seen["usage"]
        seen["specproxy"] = piece.get("specproxy") or seen["specproxy"]
    cached = seen["usage"]["prompt_tokens_details"].pop("cached_tokens")
    visible = {
        "prompt_token_ids": seen["prompt"],
        "usage": seen["usage"],
        "choices": [vars(choices[index]) for index in sorted(choices)],
    }
    return Reply(visible, cached, seen["specproxy"], headers)
