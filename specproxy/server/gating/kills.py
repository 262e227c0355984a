"""Kill switches: speculation off by hand or by a hard mismatch, on a route or everywhere, whatever the gate says."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from specproxy.vocabulary import Decision

_BUSY_S = 10.0


class Kill(Struct, frozen=True):
    """Speculation is off. ``route`` ``None``: on all; ``drafter`` ``None``: of every drafter. Unix seconds."""

    route: str | None
    drafter: str | None
    reason: str
    actor: str
    time: float

    def covers(self, route: str) -> bool:
        """Whether it switches anything off on ``route``."""
        return self.route is None or self.route == route

    @property
    def scope(self) -> tuple[str | None, str | None]:
        """What it switches off; one kill at most of each."""
        return self.route, self.drafter


def mute(decision: Decision, kills: Iterable[Kill]) -> Decision:
    """``decision`` without the drafters that are off."""
    for kill in kills:
        if decision.drafters and kill.covers(decision.route):
            left = () if kill.drafter is None else tuple(n for n in decision.drafters if n != kill.drafter)
            reason = f"switched off by {kill.actor}: {kill.reason}"
            decision = plain(decision, reason) if not left else msgspec.structs.replace(decision, drafters=left)
    return decision


def plain(decision: Decision, reason: str) -> Decision:
    """The decision to draft nothing."""
    return msgspec.structs.replace(
        decision, drafters=(), auto=False, k_min=0, k_max=0, adaptive=False, reason=decision.reason or reason
    )


class KillFile:
    """The kills that hold, in a table beside the gate's own. Used from the ledger's thread."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("CREATE TABLE IF NOT EXISTS kills (body BLOB NOT NULL) STRICT")

    def load(self) -> list[Kill]:
        """All of them."""
        rows = self._db.execute("SELECT body FROM kills ORDER BY rowid").fetchall()
        return [msgspec.json.decode(body, type=Kill) for (body,) in rows]

    def save(self, kills: Sequence[Kill]) -> None:
        """These and no others."""
        with contextlib.ExitStack() as stack:
            self._db.execute("BEGIN IMMEDIATE")
            stack.callback(lambda: self._db.execute("ROLLBACK") if self._db.in_transaction else None)
            self._db.execute("DELETE FROM kills")
            self._db.executemany("INSERT INTO kills VALUES (?)", [(msgspec.json.encode(kill),) for kill in kills])
            self._db.execute("COMMIT")

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
