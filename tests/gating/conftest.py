"""Servers whose routes have a gate that a few dozen answers satisfy."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from specproxy.gate.read_only import ReadOnlyStore
from specproxy.gate.store import AuditEntry
from specproxy.policy.watch import PolicyStore
from specproxy.server.engine_backend import EngineBackend
from specproxy.server.gating.gate import Gate
from specproxy.server.metrics import Metrics
from specproxy.vocabulary import ModelInfo, Numerics
from specproxy.wire.frames import Hello
from tests.conftest import wait_until
from tests.gating.desk import CATALOGUE, only, policy, prove

DEFAULTS = """\
version: 1
defaults:
  override: true
  hold_out: 0
  audit: {fraction: 1.0, budget: 1.0}
  shadow: {fraction: 1.0, budget: 1.0}
  gate:
    mode: auto
    goal: no_worse
    min_gain: 3
    margins: {ttft_p95: 20, itl_p95: 20, cost: 20, structured: 1, tools: 1, stability: 1, ties: 1}
    mismatch: {p0: 0.001, p1: 0.5, alpha: 0.05, beta: 0.3}
    canary: [0.5, 1.0]
    min_samples: 4
"""
OFF = "routes: [{name: default, speculate: off}]\n"
NGRAM = "routes: [{name: default, speculate: {drafters: ngram}}]\n"

NUMERICS = Numerics("f", "cpu", "bfloat16", "2", "bitwise", [1], 64, 1, 1, "fused")
HELLO = Hello(1, ModelInfo("house", "m", 2048, 100, [0]), NUMERICS, [], 10, 64, 8, 0.1)

WORDS = ("red", "blue", "cold", "warm", "tall", "small", "old", "new")


@dataclass
class Gated:
    """A server with a policy folder and a state file of its own."""

    folder: Path
    start: Callable[..., Any]
    flags: tuple[str, ...] = ("--drafter", "ngram=ngram")
    env: dict[str, str] = field(default_factory=dict)
    server: Any = None
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def write(self, routes: str, defaults: str = DEFAULTS) -> None:
        """What the policy files say from now on."""
        (self.folder / "policies").mkdir(exist_ok=True)
        (self.folder / "policies" / "all.yaml").write_text(defaults + routes)

    def run(self) -> None:
        """Start the server, again with the same files."""
        self.server = self.start(
            "--policies",
            str(self.folder / "policies"),
            "--set",
            f"state.path={self.state}",
            "--set",
            "model.max_sequences=8",
            "--set",
            f"admin.socket={self.folder}/admin.sock",
            *self.flags,
            env=self.env,
        )

    @property
    def state(self) -> Path:
        """The gate's file."""
        return self.folder / "gate.db"

    def get(self, path: str) -> Any:
        """What the admin API says."""
        return self.post(path, None, method="GET")

    def post(self, path: str, body: Any, *, method: str = "POST", headers: dict[str, str] | None = None) -> Any:
        """Ask the admin API."""
        transport = httpx.HTTPTransport(uds=f"{self.folder}/admin.sock")
        with httpx.Client(transport=transport, base_url="http://localhost/admin/v1", timeout=30) as client:
            answer = client.request(method, path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def order(self, order: str, **fields: Any) -> Any:
        """Order something of the newest revision of the route."""
        newest = self.get("/routes/default/revisions")["revisions"][-1]
        body = {"revision": newest["revision"], **fields}
        return self.post(f"/routes/default/{order}", body, headers={"if-match": newest["etag"]})

    def ask(
        self, count: int = 1, headers: dict[str, str] | None = None, prompt_number: int | None = None, **fields: Any
    ) -> list[httpx.Response]:
        """Send requests one after another, each a conversation of its own that repeats itself."""
        answers = []
        with httpx.Client(base_url=self.server.url, timeout=60, trust_env=False) as client:
            for number in itertools.islice(self.numbers, count) if prompt_number is None else [prompt_number]:
                text = " ".join(WORDS[(number >> shift) % 8] for shift in (0, 3, 6)) + f" {number} " * 3
                body = {"model": "house", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
                answer = client.post(
                    "/v1/chat/completions",
                    json=body | {"temperature": 0, "ignore_eos": True} | fields,
                    headers=headers or {},
                )
                assert answer.status_code == 200, answer.text
                answers.append(answer)
        return answers

    def ask_together(self, count: int, at_once: int = 5) -> list[httpx.Response]:
        """As ``ask``, several at a time. Shadow work waits for the last of them, so that none of it is disturbed and
        each request makes a pair whose times count, however fast this machine is."""
        with ThreadPoolExecutor(at_once) as threads:
            return [answers[0] for answers in threads.map(lambda _: self.ask(), range(count))]

    def settle(self) -> None:
        """Until shadow work has ended."""
        wait_until(lambda: self.server.metric("specproxy_shadow_waiting") == 0, 60, "the end of shadow work")

    def log(self) -> list[AuditEntry]:
        """The audit log."""
        with closing(ReadOnlyStore(self.state)) as store:
            return store.log(limit=100_000)

    def verify(self) -> int:
        """The number of entries, after the chain was walked."""
        with closing(ReadOnlyStore(self.state)) as store:
            return store.verify()

    def phases(self, route: str = "default") -> list[str]:
        """Phases of the route's revisions as stored, oldest first."""
        with closing(sqlite3.connect(self.state)) as db:
            rows = db.execute("SELECT phase FROM states WHERE route = ? ORDER BY id", (route,)).fetchall()
        return [phase for (phase,) in rows]

    def candidates(self) -> list[dict[str, Any]]:
        """What /ready says is on its way."""
        found: list[dict[str, Any]] = self.server.ready()["policy"]["candidates"]
        return found


@pytest.fixture
def gated(tmp_path: Path, start_server: Callable[..., Any]) -> Iterator[Gated]:
    """Not started yet."""
    made = Gated(tmp_path, start_server)
    yield made
    if made.server is not None and made.server.process.poll() is None:
        made.server.stop()


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    """A gate whose candidate is in canary; its backend believes in an engine."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "all.yaml").write_text(policy(only("off")))
    backend = EngineBackend()
    backend.hello, backend.state = HELLO, "ready"
    policies = PolicyStore(folder, CATALOGUE)
    made = Gate(policies, backend, Metrics())
    backend.observers.append(made)
    await made.open(tmp_path / "gate.db")
    (folder / "all.yaml").write_text(policy(only("{drafters: ngram}")))
    policies.reload()
    await made.tick()
    if made.book.change is None:
        raise AssertionError("the edit made no candidate")
    prove(made.book.change.members["default"], shadow=300, clean=299)
    await made.tick()
    yield made
    await made.close()
