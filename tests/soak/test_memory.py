"""Memory under minutes of mixed load: flat in both processes, and nothing left when the load ends (``make soak``)."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.support.exchange import PATHS, exchange
from tests.support.prompts import Prompt
from tests.support.servers import every_drafter

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
WARM_MINUTES = min(2.0, MINUTES / 5)
"""Not judged: connections, buffers and caches still grow to their size."""

MAX_SLOPE = 1.0
"""MB per minute."""

WORKERS = 8
SAMPLE_S = 3.0
LONG = 1600
"""Prompt tokens of the requests that fill the page pool, whose memory is the process's own once it was written to."""

WISHES = ("off", "ngram;k=8", "prediction;k=4", "draft_model;k=5", "replay;k=6", "auto")

pytestmark = [pytest.mark.soak, pytest.mark.timeout(60 * (MINUTES + 6))]


@dataclass
class Sample:
    """Resident memory of both processes in MB, ``at`` minutes; KV pages as last reported."""

    at: float
    server: float
    engine: float
    pages_used: float
    requests: int


@dataclass
class Load:
    """Clients that never rest: each takes one action after another, all drawn from one seed."""

    client: httpx.AsyncClient
    prompts: list[Prompt]
    rng: random.Random = field(default_factory=lambda: random.Random(5))
    done: Counter[str] = field(default_factory=Counter)

    async def work(self, until: float) -> None:
        """One client, until the time on the monotonic clock. Raises AssertionError on any answer it did not expect."""
        actions: list[Callable[[], Awaitable[None]]] = [
            self.whole,
            self.streamed,
            self.cut_off,
            self.cut_off,
            self.gone_at_once,
            self.refused,
        ]
        while time.monotonic() < until:
            action = self.rng.choice(actions)
            await action()
            self.done[action.__name__] += 1

    async def fill(self, requests: int) -> None:
        """Long prompts that share nothing, for the page pool."""
        for _ in range(requests):
            ids = [self.rng.randrange(300, 8000) for _ in range(LONG)]
            body = {"model": "house", "prompt": ids, "max_tokens": 4, "ignore_eos": True}
            await exchange(self.client, "completions", body, "draft_model;k=2")

    async def whole(self) -> None:
        """An answer in one piece."""
        await exchange(self.client, *self._request(), self._wish())

    async def streamed(self) -> None:
        """A stream, read to its end."""
        endpoint, body = self._request()
        await exchange(
            self.client, endpoint, body | {"stream": True, "stream_options": {"include_usage": True}}, self._wish()
        )

    async def cut_off(self) -> None:
        """A stream that is closed after a few chunks."""
        endpoint, body = self._request()
        headers = {"x-specproxy-speculate": self._wish()}
        chunks = self.rng.randrange(1, 20)
        async with self.client.stream(
            "POST", PATHS[endpoint], json=body | {"stream": True}, headers=headers
        ) as response:
            assert response.status_code == 200
            async for _ in response.aiter_lines():
                chunks -= 1
                if chunks == 0:
                    break

    async def gone_at_once(self) -> None:
        """A client that leaves while its prompt is computed, or before."""
        try:
            async with asyncio.timeout(self.rng.uniform(0.001, 0.1)):
                await exchange(self.client, *self._request(), self._wish())
        except TimeoutError:
            pass  # It left; had it been quicker than its answer, that would be an answer like any other.

    async def refused(self) -> None:
        """A request that is wrong in one of several ways."""
        good = {"model": "house", "prompt": "x", "max_tokens": 1}
        body, status = self.rng.choice(
            [
                (good | {"model": "nope"}, 404),
                (good | {"temperature": -1}, 400),
                (good | {"prompt": [17] * 5000}, 400),
                (good | {"logit_bias": {"99999": 1}}, 400),
                (good | {"stop": ["x"] * 50}, 400),
            ]
        )
        response = await self.client.post(PATHS["completions"], json=body)
        assert response.status_code == status, response.text

    def _wish(self) -> str:
        return self.rng.choice(WISHES)

    def _request(self) -> tuple[str, dict[str, Any]]:
        """Endpoint and body; the prompt begins with a number of its own, so that pages are rarely shared."""
        rng, prompt = self.rng, self.rng.choice(self.prompts)
        text = f"{rng.randrange(10**9)}\n{prompt['messages'][-1]['content']}"
        body = {
            "model": "house",
            "max_tokens": rng.choice([1, 16, 48, 120]),
            "temperature": rng.choice([0.0, 0.8]),
            "n": rng.choice([1, 1, 2]),
            "prediction": {"type": "content", "content": prompt.get("reference") or text},
        }
        more = rng.choice([{}, {"stop": ["\n\n"]}, {"frequency_penalty": 0.5}, {"top_p": 0.9}, {"logprobs": True}])
        if rng.random() < 0.7:
            return "chat", body | more | {"messages": [*prompt["messages"][:-1], {"role": "user", "content": text}]}
        return "completions", body | {key: 3 if key == "logprobs" else value for key, value in more.items()} | {
            "prompt": text
        }


async def soak(server: Any, prompts: list[Prompt], show: Console) -> tuple[list[Sample], Counter[str]]:
    """Fill the pool, then load for MINUTES while both processes are watched."""
    processes = [psutil.Process(pid) for pid in (server.process.pid, server.engine_pid)]
    samples: list[Sample] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=WORKERS)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        load = Load(client, prompts)
        fills = round(server.metric("specproxy_kv_pages", state="total") * 64 / LONG * 1.5)
        show.print(f"filling the page pool with {fills} long prompts")
        await load.fill(fills)
        began = time.monotonic()
        until = began + 60 * MINUTES
        with Progress(console=show, transient=True) as progress:
            task = progress.add_task("soak", total=60 * MINUTES)
            workers = asyncio.gather(*(load.work(until) for _ in range(WORKERS)))
            while not workers.done():
                await asyncio.wait([workers], timeout=SAMPLE_S)
                elapsed = time.monotonic() - began
                used = await asyncio.to_thread(server.metric, "specproxy_kv_pages", state="used")
                sizes = [process.memory_info().rss / 2**20 for process in processes]
                samples.append(Sample(elapsed / 60, *sizes, used, load.done.total()))
                progress.update(
                    task, completed=elapsed, description=f"server {sizes[0]:.0f} MB, engine {sizes[1]:.0f} MB"
                )
            await workers
    return samples, load.done


def slope(samples: list[Sample], process: str) -> float:
    """Least-squares growth of a process in MB per minute, once it was warm."""
    warm = [sample for sample in samples if sample.at >= WARM_MINUTES]
    return float(np.polyfit([s.at for s in warm], [getattr(s, process) for s in warm], 1)[0])


def print_table(show: Console, samples: list[Sample], done: Counter[str]) -> None:
    """A line for every half of the warm-up's length, then the slopes."""
    table = Table(title=f"memory · {MINUTES:g} min, {done.total()} requests")
    for column in ("minute", "requests", "server MB", "engine MB", "pages in use"):
        table.add_column(column, justify="right")
    shown = -1.0
    for sample in samples:
        if sample.at >= shown + WARM_MINUTES / 2 or sample is samples[-1]:
            shown = sample.at
            sizes = f"{sample.server:.1f}", f"{sample.engine:.1f}"
            table.add_row(f"{sample.at:.1f}", str(sample.requests), *sizes, f"{sample.pages_used:.0f}")
    table.add_section()
    table.add_row("slope", "MB/min", f"{slope(samples, 'server'):+.2f}", f"{slope(samples, 'engine'):+.2f}", "")
    show.print(table)
    show.print(", ".join(f"{name} {count}" for name, count in sorted(done.items())))


def test_memory_is_flat_under_mixed_load(
    start_server: Callable[..., Any],
    eventually: Callable[..., None],
    mini: list[Prompt],
    uncaptured: Callable[[], AbstractContextManager[Console]],
    tmp_path: Path,
) -> None:
    """Streams, disconnects, errors, n = 2 and every drafter: no process grows, and no page or sequence stays behind."""
    server = start_server(*every_drafter(tmp_path))
    engine = server.engine_pid
    with uncaptured() as show:
        samples, done = asyncio.run(soak(server, mini, show))
        print_table(show, samples, done)
    assert len(done) == 5
    eventually(lambda: server.metric("specproxy_sequences_in_flight") == 0, 10, "the end of every sequence")
    eventually(lambda: server.metric("specproxy_kv_pages", state="used") == 0, 10, "the return of every page")
    for state in ("running", "waiting", "background"):
        assert server.metric("specproxy_engine_sequences", state=state) == 0
    assert server.engine_pid == engine, "the engine was restarted"
    assert slope(samples, "server") < MAX_SLOPE
    assert slope(samples, "engine") < MAX_SLOPE
