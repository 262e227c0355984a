"""The gate store in one SQLite file (``database``): one transaction per call.

``verify`` finds an entry that was changed, moved or removed, a removed tail (each state has as many entries as its
version says), a state or a kill switch that was changed without an entry, and changed content of a revision.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from specproxy.errors import IllegalMove, StaleWrite, UnknownRevision
from specproxy.gate.database import Database
from specproxy.gate.evidence import Evidence, no_evidence
from specproxy.gate.kills import Kill
from specproxy.gate.rules import rules_for
from specproxy.gate.states import GateState
from specproxy.gate.store import GENESIS, AuditEntry, Revision, Transition, digest

_ENCODE: Final = msgspec.json.Encoder().encode


class SqliteStore:
    """A GateStore in the file ``path``, made where it is missing. Any thread may call; calls wait for each other.

    Raises StoreDamaged where the file is not a gate store of this version.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path)

    def submit(self, revision: Revision, transition: Transition) -> GateState:
        """As the protocol says."""
        state = replace(transition.move.after, version=1)
        key = (revision.route, revision.revision)
        if (state.route, state.revision) != key:
            raise IllegalMove(f"the content of {key[0]} {key[1]} came with the state of {state.route} {state.revision}")
        evidence = transition.evidence or no_evidence(rules_for(revision.effective()))
        with self._database.write():
            if self._database.execute("SELECT 1 FROM revisions WHERE route = ? AND revision = ?", key).fetchone():
                raise StaleWrite(
                    f"{key[0]} {key[1][:12]} was handed in before; expected a new one, or an order: resubmit"
                )
            self._database.execute("INSERT INTO revisions VALUES (?, ?, ?)", (*key, _ENCODE(revision)))
            self._database.execute(
                "INSERT INTO states (route, revision, phase, version, body, evidence) VALUES (?, ?, '', 0, ?, ?)",
                (*key, b"", _ENCODE(evidence)),
            )
            self._put(state)
            self._append(transition, state, is_new=True, switches=None)
        return state

    def commit(self, transitions: Sequence[Transition], kills: Sequence[Kill] | None = None) -> list[GateState]:
        """As the protocol says."""
        if kills is not None and not transitions:
            raise IllegalMove("switches were changed without a transition; expected one, whose log line tells of it")
        switches = None if kills is None else digest(_ENCODE(list(kills)))
        stored = []
        with self._database.write():
            if kills is not None:
                self._put_kills(kills)
            for transition in transitions:
                before = transition.move.before
                after = replace(transition.move.after, version=before.version + 1)
                self._check_version(before)
                self._put(after)
                if transition.evidence is not None:
                    self._put_evidence(after, transition.evidence)
                self._append(transition, after, is_new=False, switches=switches)
                stored.append(after)
        return stored

    def save_evidence(self, state: GateState, evidence: Evidence) -> None:
        """As the protocol says."""
        with self._database.write():
            self._check_version(state)
            self._put_evidence(state, evidence)

    def state(self, route: str, revision: str) -> GateState:
        """As the protocol says."""
        return msgspec.json.decode(self._one("SELECT body FROM states", route, revision), type=GateState)

    def states(self, route: str | None = None) -> list[GateState]:
        """As the protocol says."""
        rows = self._database.all("SELECT body FROM states WHERE ?1 IS NULL OR route = ?1 ORDER BY id", (route,))
        return [msgspec.json.decode(body, type=GateState) for (body,) in rows]

    def revision(self, route: str, revision: str) -> Revision:
        """As the protocol says."""
        return msgspec.json.decode(self._one("SELECT body FROM revisions", route, revision), type=Revision)

    def active(self) -> list[Revision]:
        """As the protocol says."""
        query = "SELECT revisions.body FROM revisions JOIN states USING (route, revision) WHERE phase = 'active'"
        found = [msgspec.json.decode(body, type=Revision) for (body,) in self._database.all(query)]
        return sorted(found, key=lambda item: (item.position, item.route))

    def evidence(self, route: str, revision: str) -> Evidence:
        """As the protocol says."""
        return msgspec.json.decode(self._one("SELECT evidence FROM states", route, revision), type=Evidence)

    def kills(self) -> list[Kill]:
        """As the protocol says."""
        rows = self._database.all("SELECT body FROM kills ORDER BY rowid")
        return [msgspec.json.decode(body, type=Kill) for (body,) in rows]

    def log(self, *, after: int = 0, limit: int = 1000) -> list[AuditEntry]:
        """As the protocol says."""
        rows = self._database.all("SELECT body FROM audit WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        return [msgspec.json.decode(body, type=AuditEntry) for (body,) in rows]

    def verify(self) -> int:
        """As the protocol says."""
        with self._database.read():
            previous, count, switches = GENESIS, 0, None
            latest: dict[tuple[str, str], AuditEntry] = {}
            for seq, body, written in self._database.execute("SELECT seq, body, hash FROM audit ORDER BY seq"):
                count += 1
                if seq != count or digest(body) != written:
                    raise self._database.damaged(f"audit entry {seq} was changed, or one before it is missing")
                entry = msgspec.json.decode(body, type=AuditEntry)
                if entry.previous != previous or entry.seq != seq:
                    raise self._database.damaged(f"audit entry {seq} does not follow the one before it")
                key = (entry.route, entry.revision)
                known = latest.get(key)
                if entry.after.version != (known.after.version if known else 0) + 1:
                    raise self._database.damaged(f"audit entry {seq} skips a version of {key[0]} {key[1][:12]}")
                latest[key], previous, switches = entry, written, entry.switches or switches
            self._compare(latest)
            self._compare_kills(switches)
        return count

    def close(self) -> None:
        """As the protocol says."""
        self._database.close()

    def _compare(self, latest: dict[tuple[str, str], AuditEntry]) -> None:
        """States and contents against the last entry of each."""
        query = "SELECT route, revision, phase, version, states.body, revisions.body FROM revisions LEFT JOIN states"
        for route, revision, *columns, body, content in self._database.execute(f"{query} USING (route, revision)"):
            entry = latest.pop((route, revision), None)
            state = msgspec.json.decode(body, type=GateState) if body is not None else None
            if state is None or entry is None or entry.after != state or columns != [state.phase, state.version]:
                raise self._database.damaged(
                    f"the state of {route} {revision[:12]} is not what the audit log says last"
                )
            if entry.content != digest(content):
                raise self._database.damaged(f"the content of {route} {revision[:12]} was changed")
        if latest:
            route, revision = next(iter(latest))
            raise self._database.damaged(f"{route} {revision[:12]} is in the audit log and nowhere else")

    def _compare_kills(self, switches: str | None) -> None:
        """Kill switches against the last entry that changed them; a log that never told of any proves nothing."""
        if switches is None:
            return
        bodies = self._database.execute("SELECT body FROM kills ORDER BY rowid").fetchall()
        if digest(_ENCODE([msgspec.Raw(body) for (body,) in bodies])) != switches:
            raise self._database.damaged("the kill switches are not what the audit log says last")

    def _check_version(self, state: GateState) -> None:
        row = self._database.execute(
            "SELECT version, phase FROM states WHERE route = ? AND revision = ?", (state.route, state.revision)
        ).fetchone()
        if row is None:
            raise _unknown(state.route, state.revision)
        if row[0] != state.version:
            raise StaleWrite(
                f"{state.route} {state.revision[:12]} is at version {row[0]} ({row[1]}) by now; the write was made for "
                f"version {state.version} ({state.phase}); read it again"
            )

    def _put(self, state: GateState) -> None:
        try:
            self._database.execute(
                "UPDATE states SET phase = ?, version = ?, body = ? WHERE route = ? AND revision = ?",
                (state.phase, state.version, _ENCODE(state), state.route, state.revision),
            )
        except sqlite3.IntegrityError:
            raise IllegalMove(
                f"{state.route} has another revision in phase {state.phase}; expected that one to leave it before, at "
                "the latest earlier in the same commit"
            ) from None

    def _put_evidence(self, state: GateState, evidence: Evidence) -> None:
        self._database.execute(
            "UPDATE states SET evidence = ? WHERE route = ? AND revision = ?",
            (_ENCODE(evidence), state.route, state.revision),
        )

    def _put_kills(self, kills: Sequence[Kill]) -> None:
        self._database.execute("DELETE FROM kills")
        for kill in kills:
            self._database.execute("INSERT INTO kills VALUES (?)", (_ENCODE(kill),))

    def _append(self, transition: Transition, stored: GateState, *, is_new: bool, switches: str | None) -> None:
        """Add an entry to the audit log, within the transaction."""
        last = self._database.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone() or (
            0,
            GENESIS,
        )
        key = (stored.route, stored.revision)
        (content,) = self._database.execute(
            "SELECT body FROM revisions WHERE route = ? AND revision = ?", key
        ).fetchone()
        entry = AuditEntry(
            seq=last[0] + 1,
            time=transition.time,
            actor=transition.actor,
            route=stored.route,
            revision=stored.revision,
            content=digest(content),
            before=None if is_new else transition.move.before.phase,
            after=stored,
            reason=transition.move.reason,
            findings=transition.move.evidence,
            rules=transition.rules,
            previous=last[1],
            switches=switches,
        )
        body = _ENCODE(entry)
        self._database.execute("INSERT INTO audit VALUES (?, ?, ?)", (entry.seq, body, digest(body)))

    def _one(self, query: str, route: str, revision: str) -> bytes:
        rows = self._database.all(f"{query} WHERE route = ? AND revision = ?", (route, revision))
        if not rows:
            raise _unknown(route, revision)
        body: bytes = rows[0][0]
        return body


def _unknown(route: str, revision: str) -> UnknownRevision:
    return UnknownRevision(f"route {route} has no revision {revision[:12]}; expected one that was handed in before")
