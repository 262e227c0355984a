"""An admin API over a real gate without an engine, on a socket of its own, with a key."""

from __future__ import annotations

import socket
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from specproxy.cli.admin_client import AdminClient
from specproxy.config.keys import KeyRing, load_keys
from specproxy.config.schema import AdminConfig, KeysConfig
from specproxy.gate.orders import Order
from specproxy.gate.read_only import ReadOnlyStore
from specproxy.gate.states import GateState
from specproxy.gate.store import AuditEntry
from specproxy.policy.catalogue import Catalogue, DrafterSpec
from specproxy.policy.policy import PolicySet
from specproxy.policy.watch import PolicyStore
from specproxy.server.admin.app import serving
from specproxy.server.admin.claim import claim_admin, release, url_of
from specproxy.server.admin.operator import RevisionInfo
from specproxy.server.engine_backend import EngineBackend
from specproxy.server.gating.gate import Gate
from specproxy.server.gating.operator import GateOperator
from specproxy.server.gating.traffic import RouteTraffic
from specproxy.server.metrics import Metrics
from tests.gate.builders import observed

PROVEN = 1200
"""Live pairs after which every margin is proven."""

KEY = "the-operators-own-key"
POLICY = """\
version: 1
defaults: {gate: {mode: auto, min_samples: 60}}
routes:
  - name: code
    match: {metadata: {kind: code}}
    speculate: {drafters: [ngram], k: 4}
  - name: default
"""
CATALOGUE = Catalogue(drafters=(DrafterSpec("ngram", "ngram", 16, None, "n1"),), exactness="bitwise")


def revision_of(text: str, route: str = "code") -> str:
    """The revision of a route of a policy file: a function of its text."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "code.yaml").write_text(text)
        policies = PolicySet.load(Path(folder), CATALOGUE)
    return next(found.decision.revision for found in policies.routes if found.name == route)


EDITED = POLICY.replace("k: 4", "k: 2")
OLD, NEW = revision_of(POLICY), revision_of(EDITED)


class PausedOperator(GateOperator):
    """The operator of a server. ``pause`` is awaited before each order, for tests of what happens meanwhile."""

    def __init__(self, gate: Gate, state: Path) -> None:
        super().__init__(gate)
        self.gate, self.file = gate, state
        self.pause: Callable[[], Any] | None = None

    async def order(
        self, route: str, action: Order, revision: str, *, reason: str, actor: str, etag: str, force: bool
    ) -> RevisionInfo:
        """As the protocol says."""
        if self.pause is not None:
            await self.pause()
        return await super().order(route, action, revision, reason=reason, actor=actor, etag=etag, force=force)

    async def edit(self, text: str) -> None:
        """The policy file says something else now, and the gate has taken it over."""
        (self.gate.policies.directory / "code.yaml").write_text(text)
        self.gate.policies.reload()
        await self.gate.tick()

    async def prove(self, route: str, **seen: Any) -> None:
        """The candidate of a route has shown this; the gate has looked at it."""
        change = self.gate.book.change
        assert change is not None
        member = change.members[route]
        member.evidence = observed(member.rules, **seen)
        await self.gate.tick()

    @property
    def listeners(self) -> int:
        """Who waits for changes."""
        return len(self.gate.book._listeners)

    def entries(self) -> list[AuditEntry]:
        """The audit log as it stands on disk."""
        with closing(ReadOnlyStore(self.file)) as store:
            return store.log(limit=100_000)

    def verify(self) -> int:
        """The number of entries, after the chain was walked."""
        with closing(ReadOnlyStore(self.file)) as store:
            return store.verify()

    def states(self, route: str = "code") -> list[GateState]:
        """A route's revisions as they stand on disk, oldest first."""
        with closing(ReadOnlyStore(self.file)) as store:
            return store.states(route)

    def state(self, revision: str = NEW) -> GateState:
        """A revision of route ``code`` as it stands on disk."""
        return next(state for state in self.states() if state.revision == revision)

    def damage(self, *statements: str) -> None:
        """Change the file behind the gate's back."""
        with closing(sqlite3.connect(self.file, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)


@pytest.fixture
def texts() -> tuple[str, str]:
    """What the policy file says at the start, and after an edit."""
    return POLICY, EDITED


@pytest.fixture
async def operator(tmp_path: Path, texts: tuple[str, str]) -> AsyncIterator[PausedOperator]:
    """Route ``code`` with an active revision and a canary that has proven all but its answers at this step; ``default``
    with an active one."""
    folder, state = tmp_path / "policies", tmp_path / "gate.db"
    folder.mkdir()
    (folder / "code.yaml").write_text(texts[0])
    gate = Gate(PolicyStore(folder, CATALOGUE), EngineBackend(), Metrics())
    await gate.open(state)
    made = PausedOperator(gate, state)
    await made.edit(texts[1])
    await made.prove("code", shadow=400, live=PROVEN, audits=320)
    gate.traffic.routes["code"] = RouteTraffic(requests=3)
    yield made
    await gate.close()


@dataclass
class Admin:
    """A running API."""

    url: str
    operator: PausedOperator
    http: aiohttp.ClientSession

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and decoded body; header names are written with ``_`` for ``-``."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.request(method, f"{self.url}/admin/v1{path}", json=body, headers=sent) as response:
            return response.status, msgspec.json.decode(await response.read())

    async def refuses(
        self, method: str, path: str, body: Any, headers: dict[str, str], *, status: int, says: str
    ) -> None:
        """A call that is refused in OpenAI's form, with what was expected, and leaves nothing in the log."""
        before = self.operator.entries()
        got, answer = await self.ask(method, path, body, **headers)
        assert (got, set(answer["error"])) == (status, {"message", "type", "param", "code"})
        assert says in answer["error"]["message"]
        assert self.operator.entries() == before

    def client(self) -> AdminClient:
        """The command line's client."""
        return AdminClient(self.url, KEY)


def ring(*keys: str) -> KeyRing:
    """Keys as the environment gives them."""
    return load_keys(KeysConfig(env="KEYS"), {"KEYS": ",".join(keys)})


@pytest.fixture
async def admin(operator: PausedOperator) -> AsyncIterator[Admin]:
    """The API on a free port of the loopback interface."""
    config = AdminConfig(port=0)
    listener = claim_admin(config, {config.key_env: KEY})
    assert isinstance(listener, socket.socket)
    try:
        async with (
            serving(listener, operator, ring(KEY), config),
            aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as http,
        ):
            yield Admin(url_of(listener), operator, http)
    finally:
        release(listener, config)
