"""A replica's way to the gate's actor: a GateStore that calls it, and the ledger that opens this in place of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from specproxy.errors import SpecproxyError, StaleWrite, StoreDamaged
from specproxy.gate.evidence import Evidence
from specproxy.gate.kills import Kill
from specproxy.gate.states import GateState
from specproxy.gate.store import AuditEntry, Revision, Transition
from specproxy.ray.gate_actor import GateKeeper, Key, News, Switched, Written
from specproxy.ray.merging import Shrunk, copied, since
from specproxy.server.gating.ledger import Ledger

HEAD_NODE = {"node:__internal_head__": 0.001}
"""A share of what only the head node has: the file is there, wherever replicas are."""

NAMESPACE = "specproxy"

CALL_S = 30.0
"""How long the actor may take. It starts with the first call, and may be restarting."""


def actor_name(path: Path) -> str:
    """One actor a file, whichever application asks."""
    return f"gate-{hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest()}"


def keeper_of(path: Path) -> Any:
    """The actor that owns the file ``path`` of the head node, made where there is none yet. It outlives replicas."""
    return (
        ray.remote(GateKeeper)
        .options(
            name=actor_name(path),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            num_cpus=0,
            resources=HEAD_NODE,
        )
        .remote(str(path))
    )


class SharedStore:
    """A GateStore whose writes go to the actor ``keeper``, in the name of ``replica``; one thread calls at a time.

    ``base``: evidence that the actor has of what this replica's gate counts, by which what is new is known. ``serial``:
    of the last write that this replica knows of. ``may_move``: whether candidates may be moved from here; otherwise
    writes raise StaleWrite.
    """

    def __init__(self, keeper: Any, replica: str) -> None:
        self._keeper = keeper
        self._replica = replica
        self._kills: list[Kill] = []
        self.base: dict[Key, Evidence] = {}
        self.writes: dict[Key, int] = {}
        self.serial = 0
        self.may_move = True

    @contextmanager
    def only_reading(self) -> Iterator[None]:
        """Within, writes raise StaleWrite."""
        before, self.may_move = self.may_move, False
        try:
            yield
        finally:
            self.may_move = before

    def report(self, keys: Sequence[Key]) -> News:
        """Say that this replica lives; what it has to know."""
        known = {key: self.writes.get(key, 0) for key in keys}
        found: News = self._call(self._keeper.report.remote(self._replica, known))
        return found

    def submit(self, revision: Revision, transition: Transition) -> GateState:
        """As the protocol says."""
        state: GateState = self._write(self._keeper.submit.remote, revision, transition)
        if transition.evidence is not None:
            self.base[state.route, state.revision] = copied(transition.evidence)
        return state

    def commit(self, transitions: Sequence[Transition], kills: Sequence[Kill] | None = None) -> list[GateState]:
        """As the protocol says."""
        sent, grown = [], []
        for transition in transitions:
            more = self._since(_key(transition.move.before), transition.evidence)
            grown.append(more is not None)
            sent.append(
                Transition(
                    transition.move, transition.actor, transition.time, more or transition.evidence, transition.rules
                )
            )
        switched = None
        if kills is not None:
            switched = Switched(
                tuple(kill for kill in kills if kill not in self._kills),
                tuple(kill for kill in self._kills if kill not in kills),
            )
        stored: list[GateState] = self._write(self._keeper.commit.remote, sent, grown, switched)
        for transition in transitions:
            if transition.evidence is not None:
                self.base[_key(transition.move.before)] = copied(transition.evidence)
        if kills is not None:
            self._kills = list(kills)
        return stored

    def save_evidence(self, state: GateState, evidence: Evidence) -> None:
        """Have what is new of it added to what all replicas saw; the state may have moved meanwhile."""
        more = self._since(_key(state), evidence)
        if more is not None:
            self._call(self._keeper.add_evidence.remote(_key(state), more))
            self.base[_key(state)] = copied(evidence)

    def state(self, route: str, revision: str) -> GateState:
        """As the protocol says."""
        found: GateState = self._read("state", route, revision)
        return found

    def states(self, route: str | None = None) -> list[GateState]:
        """As the protocol says."""
        found: list[GateState] = self._read("states", route)
        return found

    def revision(self, route: str, revision: str) -> Revision:
        """As the protocol says."""
        found: Revision = self._read("revision", route, revision)
        return found

    def active(self) -> list[Revision]:
        """As the protocol says."""
        found: list[Revision] = self._read("active")
        return found

    def evidence(self, route: str, revision: str) -> Evidence:
        """As the protocol says: of all replicas."""
        found: Evidence = self._read("evidence", route, revision)
        self.base[route, revision] = copied(found)
        return found

    def kills(self) -> list[Kill]:
        """As the protocol says."""
        self._kills = self._read("kills")
        return list(self._kills)

    def log(self, *, after: int = 0, limit: int = 1000) -> list[AuditEntry]:
        """As the protocol says."""
        found: list[AuditEntry] = self._call(self._keeper.read.remote("log", after=after, limit=limit))
        return found

    def verify(self) -> int:
        """As the protocol says."""
        found: int = self._read("verify")
        return found

    def close(self) -> None:
        """Another replica may move candidates at once. The actor keeps the file, for the others."""
        self._keeper.leave.remote(self._replica)

    def _since(self, key: Key, evidence: Evidence | None) -> Evidence | None:
        """What the actor does not have of it; ``None`` where it was begun anew, or there is none."""
        if evidence is None or key not in self.base:
            return None
        try:
            return since(evidence, self.base[key])
        except Shrunk:
            return None

    def _write(self, method: Any, *args: Any) -> Any:
        if not self.may_move:
            raise StaleWrite("another replica moves candidates; this one follows")
        written: Written = self._call(method(*args))
        if self.serial == written.before:
            self.serial = written.after
        return written.result

    def _read(self, name: str, *args: Any) -> Any:
        return self._call(self._keeper.read.remote(name, *args))

    def _call(self, reference: Any) -> Any:
        try:
            result = ray.get(reference, timeout=CALL_S)
        except RayError as error:
            raise StoreDamaged(f"the gate's actor does not answer: {error}") from None
        if isinstance(result, SpecproxyError):
            raise result
        return result


class SharedLedger(Ledger):
    """The ledger of a replica, by its name. ``store`` is what it calls, once it is open."""

    def __init__(self, replica: str) -> None:
        super().__init__()
        self._replica = replica
        self.store: SharedStore | None = None

    def _open(self, path: Path) -> None:
        self._store = self.store = SharedStore(keeper_of(path), self._replica)
        self.store.states()  # Now, so that a file that cannot be opened is said at once.


def _key(state: GateState) -> Key:
    return state.route, state.revision
