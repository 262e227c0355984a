"""Looking into a gate's file while a server writes it: nothing is made, locked or changed."""

from __future__ import annotations

from pathlib import Path

from specproxy.gate.database import Database
from specproxy.gate.sqlite_store import SqliteStore


class ReadOnlyStore(SqliteStore):
    """A GateStore whose reads see what was committed when each began. A write raises sqlite3.OperationalError.

    Raises StoreDamaged where ``path`` is no gate store of this version, or not there at all.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path, read_only=True)
