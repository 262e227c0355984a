"""The first thing that a server does: claim its port and start the engine, which takes seconds to load.

Imports next to nothing, so that the engine loads while the server's own imports, policies and tokenizer do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from specproxy.config.schema import EngineConfig, StartConfig
from specproxy.errors import ConfigError
from specproxy.server.admin.claim import claim_admin, release

BACKLOG = 2048
"""Connections that may wait to be accepted: the kernel must not turn away a burst of clients."""

PR_SET_PDEATHSIG = 1
"""Linux prctl(2): the signal to get when the parent dies."""

_MAX_SOCKET_PATH = 100
"""Bytes of a Unix socket's path that every system takes (Linux: 107, macOS: 103)."""


@dataclass
class Launch:
    """A claimed port and an engine that is loading. ``started``: time.monotonic; ``admin_listener``: the operators',
    where they have one. Close it on every way out."""

    config: StartConfig
    engine_config: EngineConfig
    listener: socket.socket
    engine_listener: socket.socket
    folder: tempfile.TemporaryDirectory[str]
    process: subprocess.Popen[bytes]
    started: float
    admin_listener: socket.socket | None

    @property
    def port(self) -> int:
        """The port in use, also where the configuration said 0."""
        port: int = self.listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """What clients set as their base URL."""
        host = self.config.server.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"

    def start_again(self) -> subprocess.Popen[bytes]:
        """Another engine process, on the same socket."""
        return start_engine(self.engine_config)

    def close(self) -> None:
        """End the engine, if it still runs, and let go of port and socket."""
        self.process.kill()
        self.process.wait()
        self.listener.close()
        if self.admin_listener is not None:
            release(self.admin_listener, self.config.admin)
        self.engine_listener.close()
        self.folder.cleanup()


def launch(config: StartConfig) -> Launch:
    """Claim the ports and start the engine. Raises ConfigError when one cannot be had."""
    started = time.monotonic()
    listener = _claim(config.server.host, config.server.port)
    admin_listener = claim_admin(config.admin, os.environ)
    folder = _private_folder()
    path = str(Path(folder.name) / "engine.sock")
    engine_listener = socket.socket(socket.AF_UNIX)
    engine_listener.bind(path)
    engine_listener.listen()
    engine_config = EngineConfig(socket=path, model=config.model, drafters=config.drafters, log=config.log)
    process = start_engine(engine_config)
    return Launch(config, engine_config, listener, engine_listener, folder, process, started, admin_listener)


def start_engine(config: EngineConfig) -> subprocess.Popen[bytes]:
    """Start ``python -m specproxy.engine`` in a process group of its own, so that Ctrl-C reaches only the server.

    It never outlives the server: the kernel kills it. That is tied to the thread that starts it, so call this from
    the main thread.
    """
    command = [sys.executable, "-m", "specproxy.engine", "--config", msgspec.json.encode(config).decode()]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        process_group=0,
        preexec_fn=_die_with_parent(),  # noqa: PLW1509 - one system call, looked up before the fork
    )


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None  # There the engine ends when its socket closes.
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _claim(host: str, port: int) -> socket.socket:
    """A listening socket. Bound now, so that a taken port is said before minutes of loading."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; "
            "choose another with --port, or stop what uses it"
        ) from None


def _private_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that only this user may enter (mode 0700), with a path short enough for a socket."""
    folder = tempfile.TemporaryDirectory(prefix="specproxy-")
    if len(folder.name) > _MAX_SOCKET_PATH - len("/engine.sock"):
        folder.cleanup()
        folder = tempfile.TemporaryDirectory(prefix="specproxy-", dir="/tmp")
    return folder
