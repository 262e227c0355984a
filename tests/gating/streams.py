"""Long streams, one after another, that run while a gate does its work."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import httpx
import msgspec

TOKENS = 400


@dataclass
class Stream:
    """One that has ended. ``began`` and ``ended``: Unix seconds; ``revision``: the first digits of what it was served
    by; ``whole``: it ended by length, and said that nothing follows."""

    began: float
    revision: str
    text: str = ""
    ended: float = 0.0
    whole: bool = False


def read(url: str, key: str, **fields: Any) -> Stream:
    """A stream of the conversation ``key``, to its end; ``fields``: of its body, beside what all have. All of them have
    the same prompt, which is much longer than those of other tests' requests, so that they are compared among
    themselves, and so the same text."""
    body = {
        "model": "house",
        "messages": [{"role": "user", "content": "the same again and again, " * 40}],
        "prompt_cache_key": key,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        **fields,
    }
    finish = ""
    with (
        httpx.Client(base_url=url, timeout=120, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        found = Stream(time.time(), response.headers["x-specproxy-policy"])
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in msgspec.json.decode(line.removeprefix("data: "))["choices"]:
                    found.text += choice["delta"].get("content") or ""
                    finish = choice["finish_reason"] or finish
            elif line == "data: [DONE]":
                found.whole = finish == "length"
    found.ended = time.time()
    return found


@dataclass
class Streams:
    """One after another in each of several conversations, until told to stop. ``fields``: see ``read``."""

    url: str
    fields: dict[str, Any] = field(default_factory=dict)
    ended: list[Stream] = field(default_factory=list)
    _stop: Event = field(default_factory=Event)
    _threads: ThreadPoolExecutor = field(default_factory=ThreadPoolExecutor)
    _running: list[Future[None]] = field(default_factory=list)

    def start(self, key: str) -> None:
        """Another conversation."""
        self._running.append(self._threads.submit(self._follow, key))

    def stop(self) -> list[Stream]:
        """All that there were, once the last of them has ended. Raises what went wrong in any."""
        self._stop.set()
        self._threads.shutdown()
        for conversation in self._running:
            conversation.result()
        return self.ended

    def _follow(self, key: str) -> None:
        while not self._stop.is_set():
            self.ended.append(read(self.url, key, **self.fields))
