"""Looking into a gate's file while a server writes it: nothing is made, locked or changed."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from specproxy.errors import StoreDamaged
from specproxy.gate.sqlite_store import BUSY_S, SCHEMA_VERSION, SqliteStore


class ReadOnlyStore(SqliteStore):
    """A GateStore whose reads see what was committed when each began. A write raises sqlite3.OperationalError.

    Raises StoreDamaged where ``path`` is no gate store of this version, or not there at all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", timeout=BUSY_S, isolation_level=None, uri=True
            )
        except sqlite3.Error as error:
            raise self._damaged(f"cannot be opened: {error}") from None
        try:
            self._check()
        except (sqlite3.Error, StoreDamaged) as error:
            self._db.close()
            raise error if isinstance(error, StoreDamaged) else self._damaged(f"cannot be read: {error}") from None

    def _check(self) -> None:
        self._db.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found != SCHEMA_VERSION:
            raise self._damaged(f"has version {found}; this program reads version {SCHEMA_VERSION}")
