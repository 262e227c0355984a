"""The SQLite file of a gate store: its tables, and whole transactions on it from any thread.

Write-ahead log, ``synchronous=FULL``: what a transaction wrote is there after any crash, all of it or nothing.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from specproxy.errors import StoreDamaged

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

KILLS: Final = "CREATE TABLE IF NOT EXISTS kills (body BLOB NOT NULL) STRICT"
"""Made where it is missing, since files of this version were made without it once."""


class Database:
    """The file ``path``, made where it is missing unless it is only to be read. Calls wait for each other.

    Raises StoreDamaged where the file is not a gate store of this version, or, to be read, is not there at all.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._lock = threading.Lock()
        target = f"{path.absolute().as_uri()}?mode=ro" if read_only else str(path)
        try:
            self._db = sqlite3.connect(
                target, timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=read_only
            )
        except sqlite3.Error as error:
            raise self.damaged(f"cannot be opened: {error}") from None
        try:
            if read_only:
                self._check()
            else:
                self._make()
        except sqlite3.Error as error:
            self._db.close()
            raise self.damaged(f"cannot be opened: {error}") from None
        except StoreDamaged:
            self._db.close()
            raise

    def execute(self, query: str, values: tuple[str | int | bytes | None, ...] = ()) -> sqlite3.Cursor:
        """One statement, within ``write`` or ``read``."""
        return self._db.execute(query, values)

    @contextmanager
    def write(self) -> Iterator[None]:
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
    def read(self) -> Iterator[None]:
        """One view of the file, whatever others write meanwhile."""
        with self._lock:
            self._db.execute("BEGIN")
            try:
                yield
            except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
                raise self.damaged(str(error)) from None
            finally:
                self._db.execute("ROLLBACK")

    def all(self, query: str, values: tuple[str | int | None, ...] = ()) -> list[Any]:
        """Every row, of one view."""
        with self.read():
            return self._db.execute(query, values).fetchall()

    def damaged(self, what: str) -> StoreDamaged:
        """The error that says so, and what to do."""
        return StoreDamaged(f"{self._path}: {what}; restore the file from a backup, or move it away to begin anew")

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    def _make(self) -> None:
        # Before anything that can find the file busy, as switching to the write-ahead log does not wait by itself.
        self._db.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        with self.write():
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found == 0:
                for statement in _statements(SCHEMA):
                    self._db.execute(statement)
            elif found != SCHEMA_VERSION:
                raise self._other(found)
            self._db.execute(KILLS)

    def _check(self) -> None:
        self._db.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found != SCHEMA_VERSION:
            raise self._other(found)

    def _other(self, found: int) -> StoreDamaged:
        return self.damaged(f"has version {found}; this program reads version {SCHEMA_VERSION}")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; ``executescript`` would end the transaction that they belong to."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
