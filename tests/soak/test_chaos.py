"""Everything breaks at once: engines are killed and stopped, clients leave in storms, policies are reloaded; every
stream says what it would have said undisturbed (``make soak``).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from rich.console import Console
from rich.progress import Progress

from tests.support.exchange import PATHS, exchange
from tests.support.prompts import Prompt
from tests.support.servers import every_drafter

STREAMS = int(os.environ.get("CHAOS_STREAMS", "500"))
KILLS = int(os.environ.get("CHAOS_KILLS", "50"))
AT_ONCE = 12
STORM = 10
"""Clients that come together, and leave together a moment later."""

SILENCE_S = 3.0
"""After which a stopped engine is taken to hang."""

GRACE_S = 2.0
"""How much longer than the engine was away a stream may stand still."""

GROWTH_MB = 25.0
WISHES = ("off", "ngram;k=8", "draft_model;k=5", "auto")

pytestmark = [pytest.mark.soak, pytest.mark.timeout(120 + 15 * KILLS + STREAMS)]


@dataclass
class Case:
    """A request and its text undisturbed."""

    endpoint: str
    body: dict[str, Any]
    text: str = ""


@dataclass
class Chaos:
    """What is done to the server, and what was seen. ``away``: seconds of each engine's absence; ``pauses``: seconds
    for which each stream stood still at most."""

    server: Any
    client: httpx.AsyncClient
    cases: list[Case]
    policies: Path
    rng: random.Random = field(default_factory=lambda: random.Random(11))
    ended: int = 0
    kills: int = 0
    away: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def streams(self) -> None:
        """One client's streams, until all clients together had enough."""
        while self.ended < STREAMS or self.kills < KILLS:
            case = self.rng.choice(self.cases)
            last, longest = time.monotonic(), 0.0

            def chunk() -> None:
                nonlocal last, longest
                now = time.monotonic()
                last, longest = now, max(longest, now - last)

            body = case.body | {"stream": True, "stream_options": {"include_usage": True}}
            reply = await exchange(self.client, case.endpoint, body, self.rng.choice(WISHES), chunk)
            assert text_of(reply.visible) == case.text
            self.pauses.append(longest)
            self.ended += 1

    async def engines(self) -> None:
        """Kill the engine, or stop it so that it hangs, again and again; each has some seconds to work first."""
        while self.kills < KILLS:
            await asyncio.sleep(self.rng.uniform(1.0, 4.0))
            began, pid = time.monotonic(), await asyncio.to_thread(lambda: self.server.engine_pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if self.kills % 10 == 9 else signal.SIGKILL)
            await self._another(pid)
            self.away.append(time.monotonic() - began)
            self.kills += 1

    async def storms(self) -> None:
        """Clients that ask and leave."""
        while not self.over.is_set():
            await asyncio.gather(*(self._gone(self.rng.choice(self.cases)) for _ in range(STORM)))
            await asyncio.sleep(self.rng.uniform(0.5, 3.0))

    async def reloads(self) -> None:
        """The policy files change."""
        file = self.policies / "all.yaml"
        text = file.read_text()
        while not self.over.is_set():
            file.write_text(f"{text}# {self.rng.randrange(10**9)}\n")
            await asyncio.sleep(self.rng.uniform(0.5, 2.0))

    async def _gone(self, case: Case) -> None:
        with suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(self.rng.uniform(0.01, 0.3)):
                await self.client.post(PATHS[case.endpoint], json=case.body)

    async def _another(self, before: int) -> None:
        """Until another engine is ready."""
        ready, pid = False, before
        while not ready or pid == before:
            await asyncio.sleep(0.05)
            ready = (await self.client.get("/ready")).status_code == 200
            pid = await asyncio.to_thread(lambda: self.server.engine_pid)


def cases_of(prompts: list[Prompt]) -> list[Case]:
    """Chats and completions, greedy and not, some with several choices or logprobs."""
    found = []
    for number, prompt in enumerate(prompts):
        body: dict[str, Any] = {"model": "house", "max_tokens": (24, 60, 120)[number % 3], "seed": number}
        body |= [{"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9}][number % 3]
        body |= [{}, {"n": 2}, {"logprobs": True}, {"frequency_penalty": 0.4}][number % 4]
        found.append(Case("chat", body | {"messages": prompt["messages"]}))
    return found


def text_of(visible: dict[str, Any]) -> str:
    """All that a client sees, as one string to compare."""
    return repr(sorted(visible.items()))


async def run(chaos: Chaos, show: Console) -> None:
    """Undisturbed first, then everything together."""
    for case in chaos.cases:
        body = case.body | {"stream": True, "stream_options": {"include_usage": True}}
        case.text = text_of((await exchange(chaos.client, case.endpoint, body, "off")).visible)
    with Progress(console=show, transient=True) as progress:
        task = progress.add_task("streams", total=STREAMS)
        beside = [asyncio.create_task(each()) for each in (chaos.storms, chaos.reloads)]
        work = [asyncio.create_task(chaos.engines()), *(asyncio.create_task(chaos.streams()) for _ in range(AT_ONCE))]
        while work:
            done, pending = await asyncio.wait(work, timeout=1.0, return_when=asyncio.FIRST_EXCEPTION)
            work = list(pending)
            progress.update(task, completed=chaos.ended, description=f"streams, {chaos.kills} engines ended")
            for each in done:
                each.result()
        chaos.over.set()
        await asyncio.gather(*beside)


def test_streams_say_the_same_through_everything(
    start_server: Callable[..., Any],
    eventually: Callable[..., None],
    mini: list[Prompt],
    uncaptured: Callable[[], AbstractContextManager[Console]],
    tmp_path: Path,
) -> None:
    """Every text is its undisturbed one, no stream stands still for longer than the engine was away, and nothing is
    left: no sequence, no page, no process; the server has not grown."""
    flags = ["--set", f"server.engine_silence_s={SILENCE_S:g}", "--set", "server.max_queue=1000"]
    server = start_server(*every_drafter(tmp_path), *flags)
    process = psutil.Process(server.process.pid)

    async def everything() -> Chaos:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=AT_ONCE)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            chaos = Chaos(server, client, cases_of(mini), tmp_path / "policies")
            await run(chaos, show)
        return chaos

    with uncaptured() as show:
        before = process.memory_info().rss / 2**20
        chaos = asyncio.run(everything())
        after = process.memory_info().rss / 2**20
        show.print(
            f"{chaos.ended} streams, {chaos.kills} engines ended; the engine was away for {max(chaos.away):.1f} s at "
            f"most, a stream stood still for {max(chaos.pauses):.1f} s; server {before:.0f} to {after:.0f} MB"
        )
    assert chaos.ended >= STREAMS
    assert max(chaos.pauses) < max(chaos.away) + GRACE_S
    assert after - before < GROWTH_MB
    eventually(lambda: server.metric("specproxy_sequences_in_flight") == 0, 10, "the end of every sequence")
    eventually(lambda: server.metric("specproxy_kv_pages", state="used") == 0, 10, "the return of every page")
    assert [child.pid for child in process.children(recursive=True)] == [server.engine_pid]
