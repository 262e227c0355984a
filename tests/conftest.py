"""Fixtures for every test: the bundled house model, as server processes and as engines in this process; prompts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not Path("/dev/nvidiactl").exists():
    # Without a card kernels run in Triton's interpreter, which must be chosen before anybody imports triton.
    os.environ["TRITON_INTERPRET"] = "1"

import httpx
import msgspec
import pytest
from rich.console import Console

from tests.support.prompts import ROUTES, Prompt, mini_prompts, route_prompts

if TYPE_CHECKING:
    from tests.support.driver import Driver

REPOSITORY = Path(__file__).parent.parent
START_S = 90.0
STOP_S = 20.0

QUIET = ("--set", "model.threads=1")
"""One core for the engine, as server, clients and tests need the other: with both, its threads wait for each other."""


@dataclass
class RunningServer:
    """A server process of its own. ``url`` has no path; ``log`` has one JSON object a line."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes."""
        return f"{self.url}/v1"

    def get(self, path: str) -> httpx.Response:
        """GET with a connection of its own; reading certificates for each would keep a core busy while others start."""
        return httpx.get(f"{self.url}{path}", timeout=10, verify=False, trust_env=False)

    def ready(self) -> dict[str, Any]:
        """The body of /ready."""
        body: dict[str, Any] = self.get("/ready").json()
        return body

    @property
    def engine_pid(self) -> int:
        """Process id of the engine."""
        return int(self.ready()["engine"]["pid"])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels; 0 where there are none."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(f'{k}="{v}"' in sample for k, v in labels.items()):
                total += float(value)
        return total

    def events(self, event: str) -> list[dict[str, Any]]:
        """Log lines of one kind, in order."""
        lines = [msgspec.json.decode(line) for line in self.log.read_bytes().splitlines() if line.startswith(b"{")]
        return [line for line in lines if line["event"] == event]

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(sig)
        return self.process.wait(STOP_S)


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "it") -> None:
    """Poll until ``condition`` holds, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {timeout_s} s")
        time.sleep(0.02)


def server_environment() -> dict[str, str]:
    """The environment without settings of ours; nothing may be fetched."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPECPROXY_")}
    return env | {"HF_HUB_OFFLINE": "1"}


def spawn_server(folder: Path, *flags: str, env: dict[str, str] | None = None) -> RunningServer:
    """Start ``specproxy serve`` on a free port, with a JSON log in ``folder``, and wait until it listens."""
    log = folder / "server.log"
    command = [sys.executable, "-m", "specproxy", "serve", "--port", "0", "--log-format", "json", *QUIET]
    command += ["--set", f"state.path={folder / 'gate.db'}", *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=REPOSITORY, env=server_environment() | (env or {})
        )
    server = RunningServer("", process, log)
    wait_until(lambda: server.events("listening") or process.poll() is not None, 30, "listening")
    if process.poll() is not None:
        raise AssertionError(f"the server ended with {process.returncode}: {log.read_text()}")
    server.url = server.events("listening")[0]["url"].removesuffix("/v1")
    return server


def wait_ready(server: RunningServer) -> None:
    """Until /ready says 200."""

    def is_ready() -> bool:
        if server.process.poll() is not None:
            raise AssertionError(f"the server ended with {server.process.returncode}: {server.log.read_text()}")
        with contextlib.suppress(httpx.TransportError):
            return server.get("/ready").status_code == 200
        return False

    wait_until(is_ready, START_S, "readiness")


ServerFactory = Callable[..., RunningServer]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFactory]:
    """Starts servers with flags of your own; what still runs at the end of the session is stopped."""
    started: list[RunningServer] = []

    def start(*flags: str, env: dict[str, str] | None = None, until_ready: bool = True) -> RunningServer:
        server = spawn_server(tmp_path_factory.mktemp("server"), *flags, env=env)
        started.append(server)
        if until_ready:
            wait_ready(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
    for server in started:
        try:
            server.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="session")
def server(start_server: ServerFactory) -> RunningServer:
    """The server that most tests share: house model, its drafters, the shipped policies."""
    return start_server()


@pytest.fixture(scope="session")
def base_url(server: RunningServer) -> str:
    """Base URL of the shared server, for OpenAI clients."""
    return server.base_url


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Waits until a condition holds: ``eventually(lambda: …, timeout_s=10, what="…")``."""
    return wait_until


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that was empty when the tests began, and is theirs, whichever process runs them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def assemble_engine(cache_home: Path) -> Iterator[Callable[..., Driver]]:
    """Builds a Driver from drafters and model options; equal ones share an engine."""
    from tests.support.engines import Engines  # torch: seconds that tests of the server need not wait for

    engines = Engines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        yield engines.build
    engines.close()


@pytest.fixture
def uncaptured(capfd: pytest.CaptureFixture[str]) -> Callable[[], contextlib.AbstractContextManager[Console]]:
    """A console that a person sees at once, for tests that take minutes and measure."""

    @contextlib.contextmanager
    def show() -> Iterator[Console]:
        with capfd.disabled():
            console = Console()
            console.print()
            yield console

    return show


@pytest.fixture(scope="session")
def mini() -> list[Prompt]:
    """The bundled prompt mix with token ids."""
    return mini_prompts()


@pytest.fixture(scope="session")
def routes() -> list[Prompt]:
    """The standard route mix with token ids, tools left out; skips with a reason where the data is not there."""
    if not ROUTES.is_file():
        pytest.skip("the standard route mix is no part of this repository: no ../shared/data/eval/routes.jsonl here")
    return route_prompts()
