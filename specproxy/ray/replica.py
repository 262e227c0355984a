"""One replica: a whole specproxy, server and engine, inside a Ray actor. Calls reach it over loopback HTTP.

The server runs on the loop that Ray Serve made for the replica, on a thread that lives as long as the process; the
engine is its child, and the kernel ends it with that thread, however the replica dies.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import aiohttp
import prometheus_client
import structlog
from msgspec.structs import replace
from ray import serve

from specproxy.config.keys import load_keys
from specproxy.config.schema import AdminConfig, StartConfig
from specproxy.errors import ConfigError, StartError
from specproxy.policy.watch import PolicyStore
from specproxy.ray.call import Broken, Call, Head, Headers, Part, Taken
from specproxy.ray.gate_follow import SharedGate
from specproxy.server.admin.claim import claim_admin
from specproxy.server.launch import Launch, launch
from specproxy.server.logs import configure_logs
from specproxy.server.main import Server
from specproxy.wire.frames import Hello

_ENDS_HERE = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length", "date"}
    | {"server", "expect"}
)
"""Headers of one connection, which say nothing of the next."""

_GRACE_S = 5.0


class ReplicaServer(Server):
    """The server without a process of its own: signals belong to Ray. It is ``ready`` once requests are answered."""

    def __init__(self, launched: Launch, name: str) -> None:
        self.ready_now = asyncio.Event()
        super().__init__(launched, load_keys(launched.config.keys, os.environ), self)
        self._shared = SharedGate(self._state.gate, name)

    @property
    def failed(self) -> str:
        """Why the engine was given up; empty while it was not."""
        return self._state.backend.problem or "unknown" if self._state.backend.state == "failed" else ""

    async def run(self) -> int:
        """As ever, and follow the gates of the other replicas."""
        following = asyncio.create_task(self._follow())
        try:
            return await super().run()
        finally:
            following.cancel()

    def stop(self) -> None:
        """Drain, then end."""
        self._stopping.set()

    def loading(self, elapsed_s: float, phase: str) -> None:
        """Nobody watches."""

    def ready(self, launch: Launch, hello: Hello, policies: PolicyStore, elapsed_s: float) -> None:
        """Requests are answered from now on."""
        structlog.get_logger().info("ready", url=launch.url, model=hello.model.name, seconds=round(elapsed_s, 1))
        self.ready_now.set()

    def _handle_signals(self) -> None:
        """None are ours."""

    async def _follow(self) -> None:
        await self.ready_now.wait()
        await self._shared.run()


class Replica:
    """The deployment. ``config``: of every replica; addresses in it are of the ingress, and not used here.

    Raises StartError where the engine cannot start. Serve awaits a constructor that is a coroutine.
    """

    async def __init__(self, config: StartConfig) -> None:  # type: ignore[misc]
        configure_logs(config.log)
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._name = serve.get_replica_context().replica_id.unique_id
        self._launch = _launched(config)
        self._server = ReplicaServer(self._launch, self._name)
        self._running = asyncio.create_task(self._server.run())
        ready = asyncio.create_task(self._server.ready_now.wait())
        try:
            await asyncio.wait({self._running, ready}, return_when=asyncio.FIRST_COMPLETED)
            if self._running.done():
                self._running.result()
                raise StartError("the server ended before it was ready")
        except BaseException:
            self._launch.close()
            raise
        finally:
            ready.cancel()
        self._session = aiohttp.ClientSession(
            base_url=self._launch.url.removesuffix("/v1"),
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            trust_env=False,
        )

    async def answer(self, call: Call) -> AsyncIterator[Part]:
        """Answer one call: ``Taken``, ``Head``, then the body, and ``Broken`` where the server broke it off."""
        yield Taken(self._name)
        headers = [(name, value) for name, value in call.headers if name.lower() not in _ENDS_HERE]
        async with self._session.request(call.method, call.path, headers=headers, data=call.body or None) as answer:
            yield Head(answer.status, _kept(answer))
            try:
                async for chunk in answer.content.iter_any():
                    yield chunk
            except aiohttp.ClientPayloadError:
                yield Broken()

    async def check_health(self) -> None:
        """Ray asks; a replica that raises is replaced. An engine that died and comes back is no reason to."""
        if self._running.done():
            raise RuntimeError("the server has ended")
        if self._server.failed:
            raise RuntimeError(f"the engine was given up: {self._server.failed}")

    async def __del__(self) -> None:
        """Ray calls this when the replica goes in peace."""
        if hasattr(self, "_session"):
            self._server.stop()
            await asyncio.wait({self._running}, timeout=self._launch.config.server.drain_s + _GRACE_S)
            await self._session.close()
            self._launch.close()


def _kept(answer: aiohttp.ClientResponse) -> Headers:
    raw = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.raw_headers]
    return tuple((name, value) for name, value in raw if name.lower() not in _ENDS_HERE)


def _launched(config: StartConfig) -> Launch:
    """A listener on loopback with a port of its own, and the engine. Operators are answered by the first replica of a
    host that claims their address."""
    own = replace(config.server, host="127.0.0.1", port=0)
    nobody = AdminConfig(key_env="", socket="")
    launched = launch(replace(config, server=own, admin=nobody))
    launched.config = replace(config, server=own)
    try:
        launched.admin_listener = claim_admin(config.admin, os.environ)
    except ConfigError as error:
        structlog.get_logger().info("operators are answered by another replica of this host", reason=str(error))
    return launched
