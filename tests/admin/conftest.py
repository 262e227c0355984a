"""An admin API over a real gate store, on a socket of its own, with a key."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from specproxy.cli.admin_client import AdminClient
from specproxy.config.keys import KeyRing, load_keys
from specproxy.config.schema import AdminConfig, KeysConfig
from specproxy.gate.rules import rules_for
from specproxy.gate.sqlite_store import SqliteStore
from specproxy.gate.states import GateState, Move, new_state
from specproxy.gate.store import Revision, Transition
from specproxy.policy.catalogue import Catalogue, DrafterSpec
from specproxy.policy.policy import PolicySet
from specproxy.policy.schema import Gate, Settings
from specproxy.server.admin.app import serving
from specproxy.server.admin.claim import claim_admin, release, url_of
from tests.gate.builders import observed
from tests.support.operator import Numbers, StoreOperator, to

PROVEN = 1200
"""Live pairs after which every margin is proven."""

KEY = "the-operators-own-key"
OLD, NEW = "a" * 64, "b" * 64
POLICY = """\
version: 1
routes:
  - name: code
    match: {metadata: {kind: code}}
    speculate: {drafters: [ngram], k: 4}
  - name: default
"""
CATALOGUE = Catalogue(drafters=(DrafterSpec("ngram", "ngram", 16, None, "n1"),), exactness="bitwise")
SETTINGS = Settings(gate=Gate(min_samples=60))


def hand_in(store: SqliteStore, route: str, revision: str, **seen: Any) -> GateState:
    """A revision in phase shadow, with this evidence."""
    now = time.time() - 3600
    state = new_state(route, revision, now)
    content = Revision(
        route=route, revision=revision, position=0, match={}, settings=msgspec.to_builtins(SETTINGS),
        drafters={"ngram": "f00"}, created=now,
    )  # fmt: skip
    evidence = observed(rules_for(SETTINGS), **seen)
    state = store.submit(content, Transition(Move(state, state, "edited"), "file watcher", now, evidence))
    for phase in ("validated", "shadow"):
        (state,) = store.commit([Transition(to(state, phase), "gate", now + 60)])
    return state


def activate(store: SqliteStore, state: GateState) -> GateState:
    """Make a revision the active one of its route, in place of none."""
    (state,) = store.commit([Transition(to(state, "active"), "gate", time.time() - 1800)])
    return state


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Route ``code`` with an active revision and a candidate that has proven all; ``default`` with an active one."""
    opened = SqliteStore(tmp_path / "gate.db")
    activate(opened, hand_in(opened, "code", OLD))
    activate(opened, hand_in(opened, "default", "c" * 64))
    hand_in(opened, "code", NEW, shadow=400, live=PROVEN, audits=320)
    yield opened
    opened.close()


@pytest.fixture
def operator(store: SqliteStore, tmp_path: Path) -> StoreOperator:
    """Obeys over the store."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "code.yaml").write_text(POLICY)
    made = StoreOperator(store, PolicySet.load(folder, CATALOGUE), CATALOGUE)
    made.numbers["code"] = Numbers(requests=3)
    return made


@dataclass
class Admin:
    """A running API."""

    url: str
    operator: StoreOperator
    http: aiohttp.ClientSession

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and decoded body; header names are written with ``_`` for ``-``."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.request(method, f"{self.url}/admin/v1{path}", json=body, headers=sent) as response:
            return response.status, msgspec.json.decode(await response.read())

    def client(self) -> AdminClient:
        """The command line's client."""
        return AdminClient(self.url, KEY)


def ring(*keys: str) -> KeyRing:
    """Keys as the environment gives them."""
    return load_keys(KeysConfig(env="KEYS"), {"KEYS": ",".join(keys)})


@pytest.fixture
async def admin(operator: StoreOperator) -> AsyncIterator[Admin]:
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
