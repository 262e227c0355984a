"""Drafters that were loaded at run time, in a table beside the gate's own, so that the next server has them too."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import msgspec

from specproxy.errors import ConfigError
from specproxy.server.drafter_swaps import LoadedLater
from specproxy.server.gating.ledger import lock_file

_BUSY_S = 10.0


def save_drafters(path: Path, drafters: Mapping[str, LoadedLater]) -> None:
    """Keep these and no others, in the state's file, whose owner calls. The write is durable when the call returns."""
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE IF NOT EXISTS drafters (name TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT")
        db.execute("DELETE FROM drafters")
        rows = [(name, msgspec.json.encode(drafter)) for name, drafter in drafters.items()]
        db.executemany("INSERT INTO drafters VALUES (?, ?)", rows)
        db.execute("COMMIT")


def stored_drafters(path: Path) -> dict[str, LoadedLater]:
    """What the last server had loaded at run time, in that order; nothing where there is no such file, or another
    server has it. Raises ConfigError where it cannot be read."""
    if not path.exists() or _owned(path):
        return {}
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_S)) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'drafters'").fetchone():
                return {}
            rows = db.execute("SELECT name, body FROM drafters ORDER BY rowid").fetchall()
        return {name: msgspec.json.decode(body, type=LoadedLater) for name, body in rows}
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{path}: drafters that were loaded at run time cannot be read: {error}; restore the file from a backup, "
            "or move it away to begin anew"
        ) from None


def _owned(path: Path) -> bool:
    """Whether a server that runs has the state."""
    try:
        handle = os.open(lock_file(path), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
