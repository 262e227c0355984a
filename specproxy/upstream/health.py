"""Asking upstreams now and then whether they are well, and vLLM what it counts of its speculation."""

from __future__ import annotations

import asyncio

import aiohttp
import structlog

from specproxy.upstream.client import Upstream
from specproxy.upstream.counters import from_vllm

DOWN_AFTER = 2
"""Checks that must fail in a row before an upstream gets no more requests; one that succeeds brings it back."""

_LIMIT_S = 5.0
"""How long a check may take, where ``every_s`` is no shorter."""


class Watcher:
    """Watches one upstream from ``run`` until that is cancelled."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._failures = 0
        self._limit_s = min(_LIMIT_S, upstream.config.health.every_s)

    async def run(self) -> None:
        """Every ``health.every_s`` seconds, the first time at once. Returns where there is nothing to ask."""
        address, config = self._upstream.address, self._upstream.config
        while address.health or config.kind == "vllm":
            if address.health:
                self._judge(await self._fault())
            if config.kind == "vllm":
                await self._read_counters()
            await asyncio.sleep(config.health.every_s)

    async def _fault(self) -> str:
        """What is wrong; empty where the upstream is well."""
        try:
            async with (
                asyncio.timeout(self._limit_s),
                self._upstream.session.get(self._upstream.address.health_url(), allow_redirects=False) as response,
            ):
                return "" if response.status == 200 else f"status {response.status}"
        except TimeoutError:
            return f"no answer within {self._limit_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return str(error) or type(error).__name__

    def _judge(self, fault: str) -> None:
        upstream = self._upstream
        self._failures = self._failures + 1 if fault else 0
        up = self._failures < DOWN_AFTER
        if fault:
            upstream.problem = fault
        if up != upstream.up:
            upstream.up = up
            say = structlog.get_logger().info if up else structlog.get_logger().error
            say("upstream is up" if up else "upstream is down", upstream=upstream.name, problem=fault or None)

    async def _read_counters(self) -> None:
        """An engine that cannot be asked keeps what it said last."""
        try:
            async with (
                asyncio.timeout(self._limit_s),
                self._upstream.session.get(self._upstream.address.metrics_url(), allow_redirects=False) as response,
            ):
                text = await response.text() if response.status == 200 else ""
        except (TimeoutError, aiohttp.ClientError, OSError, UnicodeDecodeError):
            return
        self._upstream.counts = from_vllm(text) or self._upstream.counts
