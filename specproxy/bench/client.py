"""A client that times: streams one answer and notes when its tokens came, and what the server says of itself.

While an answer is on its way only arrivals are noted; they are read once it is complete. A client that parses between
them takes a core from the server it measures, and reports its own time as the server's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from specproxy.bench.arms import Arm
from specproxy.bench.records import Record
from specproxy.errors import StartError
from specproxy.vocabulary import DraftCounts

IDLE_S = 300.0
"""Seconds without a byte after which a request counts as failed."""


class Answer(Struct):
    """One answer. Times in seconds since the request was sent: ``ttft_s`` to the first token's arrival, ``total_s``
    to the last. ``steps``, ``drafted`` and ``accepted`` as the server reports them, ``drafts`` for each drafter;
    ``error`` when there is no answer."""

    tokens: int = 0
    token_ids: list[int] = []
    text: str = ""
    finish_reason: str | None = None
    ttft_s: float = 0.0
    total_s: float = 0.0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    drafts: list[DraftCounts] = []
    error: str | None = None

    def same_as(self, other: Answer) -> bool:
        """Whether both say exactly the same: token ids, text and finish reason."""
        mine = (self.token_ids, self.text, self.finish_reason)
        return mine == (other.token_ids, other.text, other.finish_reason) and self.error is None


class Client:
    """Asks one server. ``own``: it was started with a policy set derived for the run's arms. ``salt`` keeps arms and
    repeats from finding each other's prompts in the prefix cache."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, *, own: bool) -> None:
        self._session = session
        self._url = url
        self._model = model
        self._own = own

    async def answer(self, record: Record, arm: Arm, *, max_tokens: int, salt: str, greedy: bool = False) -> Answer:
        """Stream one answer. A refused or broken request comes back as an Answer with an error, never raised."""
        body = record.body | {
            "model": self._model,
            "seed": record.seed,
            "max_completion_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "cache_salt": salt,
        }
        if greedy:
            body["temperature"] = 0.0
        headers = {"content-type": "application/json"} | arm.headers(own_server=self._own)
        data = msgspec.json.encode(body)
        answer = Answer()
        started = time.perf_counter()
        try:
            async with self._session.post(f"{self._url}/chat/completions", data=data, headers=headers) as response:
                if response.status != 200:
                    return Answer(error=f"{response.status}: {error_message(await response.read())}")
                arrivals = [(time.perf_counter() - started, part) async for part in response.content.iter_any()]
            for now, chunk in events(arrivals):
                _take(answer, chunk, now)
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        if answer.error is None and answer.finish_reason is None:
            answer.error = "the stream ended without a finish reason"
        return answer


def make_session(api_key: str | None, concurrency: int) -> aiohttp.ClientSession:
    """A session that never queues or cuts off a request by itself."""
    return aiohttp.ClientSession(
        headers={"authorization": f"Bearer {api_key}"} if api_key else {},
        connector=aiohttp.TCPConnector(limit=concurrency),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=IDLE_S),
    )


async def served_model(session: aiohttp.ClientSession, url: str) -> str:
    """The first model that the server lists. Raises StartError where nothing usable answers."""
    try:
        async with session.get(f"{url}/models") as response:
            raw = await response.read()
            if response.status != 200:
                raise StartError(f"{url}/models answered {response.status}: {error_message(raw)}")
            return str(msgspec.json.decode(raw)["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise StartError(f"no server answers at {url}: {error}") from None
    except (msgspec.MsgspecError, LookupError, TypeError):
        raise StartError(f"{url}/models does not list a model as the OpenAI API does") from None


async def readiness(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """What ``/ready`` says beside ``url`` (which ends in /v1); empty for a server that has no such page."""
    try:
        async with session.get(f"{url.removesuffix('/v1')}/ready") as response:
            found = msgspec.json.decode(await response.read())
    except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError):
        return {}
    return found if isinstance(found, dict) else {}


def events(arrivals: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any]]]:
    """The JSON events of a stream, up to ``[DONE]``, each with the time at which the bytes that complete it came."""
    rest = b""
    for now, part in arrivals:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield now, msgspec.json.decode(data)


def error_message(raw: bytes) -> str:
    """The message of an OpenAI error body, or the body's beginning where it is something else."""
    try:
        return str(msgspec.json.decode(raw)["error"]["message"])
    except (msgspec.MsgspecError, LookupError, TypeError):
        return raw[:200].decode(errors="replace")


def _take(answer: Answer, chunk: dict[str, Any], now: float) -> None:
    """One event of the stream, arrived ``now`` seconds after the request."""
    if "error" in chunk:
        answer.error = str(chunk["error"].get("message"))
        return
    for choice in chunk.get("choices") or ():
        text = (choice.get("delta") or {}).get("content") or ""
        ids = choice.get("token_ids") or []
        if text or ids:
            answer.ttft_s = answer.ttft_s or now
        answer.text += text
        answer.token_ids += ids
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        answer.total_s = now
    if usage := chunk.get("usage"):
        answer.tokens = usage["completion_tokens"]
    if ours := chunk.get("specproxy"):
        answer.steps = ours.get("steps", 0)
        answer.drafted = ours.get("drafted", 0)
        answer.accepted = ours.get("accepted", 0)
        answer.drafts = [_counts(said) for said in ours.get("drafters") or ()]


def _counts(said: dict[str, Any]) -> DraftCounts:
    """One drafter's counts; a server that says less leaves them at zero."""
    known = {name: said[name] for name in DraftCounts.__struct_fields__ if name in said}
    return DraftCounts(drafter=str(said.get("name", "")), **known)
