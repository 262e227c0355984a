"""A server of our own for the time of a measurement: started, awaited, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
from msgspec import Struct

from specproxy.config.env import PREFIX
from specproxy.config.schema import KeysConfig, StartConfig, StateConfig
from specproxy.errors import StartError

START_S = 600.0
"""Seconds that a server may take to load its models."""

STOP_S = 15.0
_POLL_S = 0.05
_TAIL_CHARS = 2000


class OwnServer(Struct, frozen=True):
    """A running server. ``url`` ends in /v1; ``ready_s``: seconds from its start until ``/ready`` said yes."""

    url: str
    ready_s: float


@asynccontextmanager
async def own_server(config: StartConfig, policies: Path, work: Path) -> AsyncIterator[OwnServer]:
    """``specproxy serve`` as ``config`` says, but with the policy set ``policies``, on free ports of the loopback
    interface, without keys, and with its files in the folder ``work``.

    Raises StartError, with the server's last words, when it ends before it is ready.
    """
    port = free_port()
    file = work / "specproxy.yaml"
    file.write_bytes(msgspec.json.encode(_private(config, policies, work, port)))
    log = work / "server.log"
    env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    command = [sys.executable, "-m", "specproxy.cli.main", "serve", "--config", str(file)]
    with log.open("wb") as output:
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output, env=env)
        try:
            await _until_ready(process, f"http://127.0.0.1:{port}", log)
            yield OwnServer(f"http://127.0.0.1:{port}/v1", time.monotonic() - started)
        finally:
            await _stop(process)


def _private(config: StartConfig, policies: Path, work: Path, port: int) -> StartConfig:
    """The same models and drafters behind a listener that nobody else uses."""
    replace = msgspec.structs.replace
    return replace(
        config,
        server=replace(config.server, host="127.0.0.1", port=port),
        admin=replace(config.admin, host="127.0.0.1", port=free_port()),
        keys=KeysConfig(env="BENCH_WITHOUT_KEYS"),
        state=StateConfig(path=str(work / "state.db")),
        policies=str(policies),
    )


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until_ready(process: asyncio.subprocess.Process, root: str, log: Path) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if process.returncode is not None:
                raise StartError(f"the server ended with exit code {process.returncode}:\n{_tail(log)}")
            try:
                async with session.get(f"{root}/ready") as response:
                    if response.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass  # Not listening yet.
            await asyncio.sleep(_POLL_S)
    raise StartError(f"the server was not ready after {START_S:.0f} s:\n{_tail(log)}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARS:]
