"""The gate store in one SQLite file: write-ahead log, ``synchronous=FULL``, one transaction per call.

``verify`` finds an entry that was changed, moved or removed, a removed tail (each state has as many entries as its
version says), a state that was changed without an entry, and changed content of a revision.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from specproxy.errors import IllegalMove, StaleWrite, StoreDamaged, UnknownRevision
from specproxy.gate.evidence import Evidence, no_evidence
from specproxy.gate.rules import rules_for
from specproxy.gate.states import GateState
from specproxy.gate.store import GENESIS, AuditEntry, Revision, Transition, digest

SCHEMA_VERSION: Final = 1
BUSY_S: Final = 10.0
"""How long a write waits for another process's."""

SCHEMA: Final = f"""
CREATE TABLE revisions (
    route TEXT NOT NULL, revision TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (route, revision)
) STRICT;
CREATE TABLE states (
    id INTEGER PRIMARY KEY, route TEXT NOT NULL, revision TEXT NOT NULL, phase TEXT NOT NULL, version INTEGER NOT NULL,
    body BLOB NOT NULL, evidence BLOB NOT NULL,
    UNIQUE (route, revision), FOREIGN KEY (route, revision) REFERENCES revisions (route, revision)
) STRICT;
CREATE UNIQUE INDEX one_active ON states (route) WHERE phase = 'active';
CREATE UNIQUE INDEX one_canary ON states (route) WHERE phase = 'canary';
CREATE TABLE audit (seq INTEGER PRIMARY KEY, body BLOB NOT NULL, hash TEXT NOT NULL) STRICT;
CREATE TRIGGER audit_keeps_entries BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_loses_no_entry BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
PRAGMA user_version = {SCHEMA_VERSION};
"""

_ENCODE: Final = msgspec.json.Encoder().encode


class SqliteStore:
    """A GateStore in the file ``path``, made where it is missing. Any thread may call; calls wait for each other.

    Raises StoreDamaged where the file is not a gate store of this version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._damaged(f"cannot be opened: {error}") from None
        try:
            self._open()
        except sqlite3.Error as error:
            self._db.close()
            raise self._damaged(f"cannot be opened: {error}") from None
        except StoreDamaged:
            self._db.close()
            raise

    def _open(self) -> None:
        # Before anything that can find the file busy, as switching to the write-ahead log does not wait by itself.
        self._db.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        with self._write():
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found == 0:
                for statement in _statements(SCHEMA):
                    self._db.execute(statement)
            elif found != SCHEMA_VERSION:
                raise self._damaged(f"has version {found}; this program reads version {SCHEMA_VERSION}")

    def submit(self, revision: Revision, transition: Transition) -> GateState:
        """As the protocol says."""
        state = replace(transition.move.after, version=1)
        key = (revision.route, revision.revision)
        if (state.route, state.revision) != key:
            raise IllegalMove(f"the content of {key[0]} {key[1]} came with the state of {state.route} {state.revision}")
        evidence = transition.evidence or no_evidence(rules_for(revision.effective()))
        with self._write():
            if self._db.execute("SELECT 1 FROM revisions WHERE route = ? AND revision = ?", key).fetchone():
                raise StaleWrite(
                    f"{key[0]} {key[1][:12]} was handed in before; expected a new one, or an order: resubmit"
                )
            self._db.execute("INSERT INTO revisions VALUES (?, ?, ?)", (*key, _ENCODE(revision)))
            self._db.execute(
                "INSERT INTO states (route, revision, phase, version, body, evidence) VALUES (?, ?, '', 0, ?, ?)",
                (*key, b"", _ENCODE(evidence)),
            )
            self._put(state)
            self._append(transition, state, is_new=True)
        return state

    def commit(self, transitions: Sequence[Transition]) -> list[GateState]:
        """As the protocol says."""
        stored = []
        with self._write():
            for transition in transitions:
                before = transition.move.before
                after = replace(transition.move.after, version=before.version + 1)
                self._check_version(before)
                self._put(after)
                if transition.evidence is not None:
                    self._put_evidence(after, transition.evidence)
                self._append(transition, after, is_new=False)
                stored.append(after)
        return stored

    def save_evidence(self, state: GateState, evidence: Evidence) -> None:
        """As the protocol says."""
        with self._write():
            self._check_version(state)
            self._put_evidence(state, evidence)

    def state(self, route: str, revision: str) -> GateState:
        """As the protocol says."""
        return msgspec.json.decode(self._one("SELECT body FROM states", route, revision), type=GateState)

    def states(self, route: str | None = None) -> list[GateState]:
        """As the protocol says."""
        rows = self._all("SELECT body FROM states WHERE ?1 IS NULL OR route = ?1 ORDER BY id", (route,))
        return [msgspec.json.decode(body, type=GateState) for (body,) in rows]

    def revision(self, route: str, revision: str) -> Revision:
        """As the protocol says."""
        return msgspec.json.decode(self._one("SELECT body FROM revisions", route, revision), type=Revision)

    def active(self) -> list[Revision]:
        """As the protocol says."""
        query = "SELECT revisions.body FROM revisions JOIN states USING (route, revision) WHERE phase = 'active'"
        found = [msgspec.json.decode(body, type=Revision) for (body,) in self._all(query)]
        return sorted(found, key=lambda item: (item.position, item.route))

    def evidence(self, route: str, revision: str) -> Evidence:
        """As the protocol says."""
        return msgspec.json.decode(self._one("SELECT evidence FROM states", route, revision), type=Evidence)

    def log(self, *, after: int = 0, limit: int = 1000) -> list[AuditEntry]:
        """As the protocol says."""
        rows = self._all("SELECT body FROM audit WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        return [msgspec.json.decode(body, type=AuditEntry) for (body,) in rows]

    def verify(self) -> int:
        """As the protocol says."""
        with self._read():
            previous, count = GENESIS, 0
            latest: dict[tuple[str, str], AuditEntry] = {}
            for seq, body, written in self._db.execute("SELECT seq, body, hash FROM audit ORDER BY seq"):
                count += 1
                if seq != count or digest(body) != written:
                    raise self._damaged(f"audit entry {seq} was changed, or one before it is missing")
                entry = msgspec.json.decode(body, type=AuditEntry)
                if entry.previous != previous or entry.seq != seq:
                    raise self._damaged(f"audit entry {seq} does not follow the one before it")
                key = (entry.route, entry.revision)
                known = latest.get(key)
                if entry.after.version != (known.after.version if known else 0) + 1:
                    raise self._damaged(f"audit entry {seq} skips a version of {key[0]} {key[1][:12]}")
                latest[key], previous = entry, written
            self._compare(latest)
        return count

    def close(self) -> None:
        """As the protocol says."""
        with self._lock:
            self._db.close()

    def _compare(self, latest: dict[tuple[str, str], AuditEntry]) -> None:
        """States and contents against the last entry of each."""
        query = "SELECT route, revision, phase, version, states.body, revisions.body FROM revisions LEFT JOIN states"
        for route, revision, *columns, body, content in self._db.execute(f"{query} USING (route, revision)"):
            entry = latest.pop((route, revision), None)
            state = msgspec.json.decode(body, type=GateState) if body is not None else None
            if state is None or entry is None or entry.after != state or columns != [state.phase, state.version]:
                raise self._damaged(f"the state of {route} {revision[:12]} is not what the audit log says last")
            if entry.content != digest(content):
                raise self._damaged(f"the content of {route} {revision[:12]} was changed")
        if latest:
            route, revision = next(iter(latest))
            raise self._damaged(f"{route} {revision[:12]} is in the audit log and nowhere else")

    def _check_version(self, state: GateState) -> None:
        row = self._db.execute(
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
            self._db.execute(
                "UPDATE states SET phase = ?, version = ?, body = ? WHERE route = ? AND revision = ?",
                (state.phase, state.version, _ENCODE(state), state.route, state.revision),
            )
        except sqlite3.IntegrityError:
            raise IllegalMove(
                f"{state.route} has another revision in phase {state.phase}; expected that one to leave it before, at "
                "the latest earlier in the same commit"
            ) from None

    def _put_evidence(self, state: GateState, evidence: Evidence) -> None:
        self._db.execute(
            "UPDATE states SET evidence = ? WHERE route = ? AND revision = ?",
            (_ENCODE(evidence), state.route, state.revision),
        )

    def _append(self, transition: Transition, stored: GateState, *, is_new: bool) -> None:
        """Add an entry to the audit log, within the transaction."""
        last = self._db.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone() or (0, GENESIS)
        key = (stored.route, stored.revision)
        (content,) = self._db.execute("SELECT body FROM revisions WHERE route = ? AND revision = ?", key).fetchone()
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
        )
        body = _ENCODE(entry)
        self._db.execute("INSERT INTO audit VALUES (?, ?, ?)", (entry.seq, body, digest(body)))

    @contextmanager
    def _write(self) -> Iterator[None]:
        """One transaction: all of it or nothing."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _read(self) -> Iterator[None]:
        """One view of the file, whatever others write meanwhile."""
        with self._lock:
            self._db.execute("BEGIN")
            try:
                yield
            except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
                raise self._damaged(str(error)) from None
            finally:
                self._db.execute("ROLLBACK")

    def _all(self, query: str, values: tuple[str | int | None, ...] = ()) -> list[tuple[bytes]]:
        with self._read():
            return self._db.execute(query, values).fetchall()

    def _one(self, query: str, route: str, revision: str) -> bytes:
        rows = self._all(f"{query} WHERE route = ? AND revision = ?", (route, revision))
        if not rows:
            raise _unknown(route, revision)
        return rows[0][0]

    def _damaged(self, what: str) -> StoreDamaged:
        return StoreDamaged(f"{self._path}: {what}; restore the file from a backup, or move it away to begin anew")


def _unknown(route: str, revision: str) -> UnknownRevision:
    return UnknownRevision(f"route {route} has no revision {revision[:12]}; expected one that was handed in before")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; ``executescript`` would end the transaction that they belong to."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
