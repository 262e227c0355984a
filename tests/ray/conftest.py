"""A Ray cluster of two replicas as a process of its own: what tests know of it comes over HTTP, from its gate's file
and from its processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from specproxy.gate.read_only import ReadOnlyStore
from specproxy.gate.store import GateStore
from tests.conftest import REPOSITORY, server_environment, wait_until

START_S = 150.0
REPLICA = "x-specproxy-replica"
NAMES = 2

POLICY = """\
version: 1
defaults: {{hold_out: 0, audit: {{fraction: 1.0, budget: 1.0}}, shadow: {{fraction: 0}}}}
routes:
  - name: gated
    match: {{metadata: {{kind: gated}}}}
    speculate: {{drafters: ngram, k: {gated}}}
    gate: {{mode: auto}}
  - name: hurried
    match: {{metadata: {{kind: hurried}}}}
    limits: {{timeout_s: 1.0}}
    gate: {{mode: off}}
  - name: free
    speculate: {{drafters: ngram, k: {free}}}
    gate: {{mode: off}}
"""

DRAFTERS = ("ngram=ngram", "prediction=prediction")


@dataclass
class Cluster:
    """The application, ready. ``url`` has no path."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    def post(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> httpx.Response:
        """One request, whole."""
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, trust_env=False)

    @contextmanager
    def stream(self, body: dict[str, Any]) -> Iterator[httpx.Response]:
        """One chat, streamed."""
        url = f"{self.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body | {"stream": True}, timeout=60, trust_env=False) as response:
            yield response

    def replicas(self) -> dict[str, int]:
        """Process ids of the replicas that answer, by name; engines are their children."""
        found: dict[str, int] = {}
        for _ in range(16):
            answer = httpx.get(f"{self.url}/ready", timeout=60, trust_env=False)
            if answer.status_code == 200:
                engine = psutil.Process(answer.json()["engine"]["pid"])
                found[answer.headers[REPLICA]] = engine.ppid()
        return found

    def both(self) -> dict[str, int]:
        """As ``replicas``, once there are two."""
        found: dict[str, int] = {}

        def two() -> bool:
            found.clear()
            found.update(self.replicas())
            return len(found) == NAMES

        wait_until(two, START_S, "a second replica")
        return found

    def kill(self, name: str) -> None:
        """The replica's process, from one moment to the next; its engine has to go with it."""
        replica = psutil.Process(self.replicas()[name])
        engine = next(child for child in replica.children() if "specproxy.engine" in child.cmdline())
        replica.kill()
        engine.wait(10)

    @contextmanager
    def store(self) -> Iterator[GateStore]:
        """The gate's file, as it is now."""
        with closing(ReadOnlyStore(self.folder / "gate.db")) as store:
            yield store

    def events(self, event: str) -> list[dict[str, Any]]:
        """Log lines of one kind, of ingress and replicas."""
        lines = (self.folder / "cluster.log").read_bytes().splitlines()
        found = [
            msgspec.json.decode(line[line.index(b"{") :]) for line in lines if b'"event":"' + event.encode() in line
        ]
        return [line for line in found if line["event"] == event]

    def gate_actor(self) -> psutil.Process:
        """The process of the gate's actor."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in children if child.name().startswith("ray::GateKeeper"))

    def write_policy(self, *, gated: int, free: int) -> None:
        """What the policy files say from now on."""
        write_policy(self.folder, gated=gated, free=free)

    def on_each(self, body: dict[str, Any], tries: int = 24) -> dict[str, httpx.Response]:
        """An answer of each replica: ``body`` with first messages that go to the one or the other."""
        with ThreadPoolExecutor(NAMES) as pool:
            asked = pool.map(lambda i: self.post(body | {"prompt_cache_key": f"any {i}"}), range(tries))
            return {answer.headers[REPLICA]: answer for answer in asked}


def write_policy(folder: Path, *, gated: int, free: int) -> None:
    """Two routes with these K."""
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies" / "all.yaml").write_text(POLICY.format(gated=gated, free=free))


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two replicas of the house model, with one thread each."""
    folder = tmp_path_factory.mktemp("ray")
    write_policy(folder, gated=4, free=4)
    port = free_port()
    settings = {
        "cpus": "0.5",
        "health_period_s": "1",
        "model.threads": "1",
        "drafters": ",".join(DRAFTERS),
        "policies": str(folder / "policies"),
        "state.path": str(folder / "gate.db"),
        "admin.socket": str(folder / "admin.sock"),
        "log.format": "json",
    }
    command = [sys.executable, "-m", "tests.ray.cluster", str(port)]
    command += [f"{name}={value}" for name, value in settings.items()]
    log = folder / "cluster.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=server_environment()
            | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"},
        )
    try:
        wait_until(lambda: b"\nready\n" in log.read_bytes() or process.poll() is not None, START_S, "the cluster")
        assert process.poll() is None, log.read_text()
        yield Cluster(f"http://127.0.0.1:{port}", folder, process)
    finally:
        process.communicate(timeout=60)


def text_of(response: httpx.Response) -> str:
    """The text of a chat's answer, whole or streamed; fails where a stream has no end."""
    if response.headers["content-type"] == "application/json":
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])
    return "".join(choice["delta"].get("content") or "" for choice in choices_of(response.iter_lines()))


def choices_of(lines: Iterator[str]) -> list[dict[str, Any]]:
    """The first choice of each chunk of a stream, which has to end as it should."""
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]", events[-1]
    chunks = [msgspec.json.decode(event) for event in events[:-1]]
    assert not any("error" in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    return [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
