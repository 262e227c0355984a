"""The gate's state of all replicas: one Ray actor owns the file, and adds up what each replica has seen."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from specproxy.errors import SpecproxyError
from specproxy.gate.evidence import Evidence
from specproxy.gate.kills import Kill
from specproxy.gate.rules import rules_for
from specproxy.gate.states import GateState, Move
from specproxy.gate.store import GateStore, Transition
from specproxy.ray.merging import added
from specproxy.server.gating.ledger import Ledger

LEASE_S = 5.0
"""How long a replica that says nothing stays the one that moves candidates."""

READS = frozenset({"state", "states", "revision", "active", "evidence", "kills", "log", "verify"})
"""Calls of a GateStore that change nothing."""

Key = tuple[str, str]
"""Route and revision."""


class News(Struct, frozen=True):
    """What a replica hears when it reports. ``serial``: changes whenever a state or a kill switch did; ``leads``:
    whether it is the one that moves candidates; ``totals``: evidence that grew since, with its last write's number."""

    serial: int
    leads: bool
    totals: dict[Key, tuple[int, Evidence]]


class Written(Struct, frozen=True):
    """A write's result, and the serial before and after it."""

    result: Any
    before: int
    after: int


class Switched(Struct, frozen=True):
    """Kill switches as one replica changes them: what is off besides, and what is not off any more."""

    thrown: tuple[Kill, ...]
    lifted: tuple[Kill, ...]


class GateKeeper:
    """The actor's class. Calls wait for each other; errors of ours are returned, as Ray would wrap them."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._ledger = Ledger()
        # A later actor must not have the numbers of an earlier one.
        self._serial = time.time_ns()
        self._numbers = itertools.count(self._serial)
        self._writes: dict[Key, int] = {}
        self._leader = ""
        self._leads_until = 0.0

    async def read(self, name: str, *args: Any, **options: Any) -> Any:
        """A call of a GateStore that changes nothing."""
        if name not in READS:
            raise ValueError(f"{name} is no read of a gate store")
        return await self._do(lambda store: getattr(store, name)(*args, **options))

    async def submit(self, revision: Any, transition: Transition) -> Any:
        """As a GateStore; as ``Written``."""
        return await self._write(lambda store: store.submit(revision, transition))

    async def commit(self, transitions: Sequence[Transition], grown: Sequence[bool], switched: Switched | None) -> Any:
        """As a GateStore; as ``Written``. ``grown``: whether a transition's evidence is what its replica has seen since
        it last said so; otherwise it takes the place of what there is.

        Lines of the log that move nothing, as kill switches write them, are never too late: they are rebased.
        """

        def write(store: GateStore) -> list[GateState]:
            ready = [_whole(store, t, more=more) for t, more in zip(transitions, grown, strict=True)]
            if switched is None:
                return store.commit(ready)
            off = [kill for kill in store.kills() if kill not in switched.lifted]
            off += [kill for kill in switched.thrown if kill not in off]
            return store.commit([_rebased(store, transition) for transition in ready], off)

        return await self._write(write)

    async def add_evidence(self, key: Key, more: Evidence) -> Any:
        """Add what a replica has seen since it last said so."""

        def write(store: GateStore) -> None:
            store.save_evidence(store.state(*key), _total(store, key, more))

        self._writes[key] = next(self._numbers)
        return await self._do(write)

    async def report(self, replica: str, known: dict[Key, int]) -> Any:
        """A replica lives; what it has to know. ``known``: the last writes of the evidence that it has,
        0 where it knows of none."""
        now = time.monotonic()
        if now > self._leads_until or self._leader == replica:
            self._leader, self._leads_until = replica, now + LEASE_S
        grown = [key for key, number in known.items() if self._writes.get(key, 0) != number]

        def read(store: GateStore) -> dict[Key, tuple[int, Evidence]]:
            return {key: (self._writes.get(key, 0), store.evidence(*key)) for key in grown}

        totals = await self._do(read)
        return totals if isinstance(totals, SpecproxyError) else News(self._serial, self._leader == replica, totals)

    async def leave(self, replica: str) -> None:
        """A replica ends: another may move candidates at once."""
        if self._leader == replica:
            self._leads_until = 0.0

    async def _write(self, function: Any) -> Any:
        before = self._serial
        result = await self._do(function)
        if isinstance(result, SpecproxyError):
            return result
        self._serial = max(self._serial, before) + 1
        return Written(result, before, self._serial)

    async def _do(self, function: Any) -> Any:
        try:
            if not self._ledger.opened:
                await self._ledger.open(self._path)
            return await self._ledger.call(function)
        except SpecproxyError as error:
            return error


def _total(store: GateStore, key: Key, more: Evidence) -> Evidence:
    test = rules_for(store.revision(*key).effective()).mismatch
    return added(store.evidence(*key), more, test)


def _whole(store: GateStore, transition: Transition, *, more: bool) -> Transition:
    """With all evidence that there is in place of one replica's."""
    before = transition.move.before
    if not more or transition.evidence is None:
        return transition
    return replace(transition, evidence=_total(store, (before.route, before.revision), transition.evidence))


def _rebased(store: GateStore, transition: Transition) -> Transition:
    move = transition.move
    if move.before != move.after:
        return transition
    now = store.state(move.before.route, move.before.revision)
    return replace(transition, move=Move(now, now, move.reason, move.evidence))
