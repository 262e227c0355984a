"""The gate of a replica among others: what it sees goes to the actor, what the others see and do comes from there.

Every replica decides requests and gathers evidence as a server of its own does. Candidates are moved by the replica
that holds the lease, on the evidence of all; verdicts hold at any time, so it does not matter how often it changes.
The others follow: they read the state again whenever it has changed. A kill switch or an order of a person is taken by
whichever replica hears of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from specproxy.errors import PolicyError, SpecproxyError, StaleWrite
from specproxy.policy.facts import Facts
from specproxy.policy.policy import PolicySet
from specproxy.ray.gate_actor import News
from specproxy.ray.gate_client import SharedLedger, SharedStore
from specproxy.ray.merging import Shrunk, added, copied, since
from specproxy.server.gating.book import Book, Tracked
from specproxy.server.gating.gate import Gate
from specproxy.server.gating.intake import Intake
from specproxy.server.gating.kills import mute
from specproxy.server.gating.moves import Moves
from specproxy.vocabulary import Decision

REPORT_S = 1.0
"""How often a replica reports; so late are kill switches, and evidence, at most."""

FIRST_START_S = 60.0
"""How long a replica waits for another that handles the first start."""

FOLLOWED = "another replica"
"""The actor of what this replica reads again; it writes nothing by that name."""


class SharedIntake(Intake):
    """Takes edits where this replica moves candidates; elsewhere only what is in the store already."""

    def __init__(self, book: Book, ledger: SharedLedger) -> None:
        super().__init__(book)
        self._ledger = ledger
        self.leads = False

    async def open(self) -> None:
        """As ever. Of replicas that start at once on an empty store, one writes and the others wait for it."""
        deadline = time.monotonic() + FIRST_START_S
        while True:
            try:
                await super().open()
                return
            except StaleWrite:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(REPORT_S / 4)

    async def take(self, policies: PolicySet, recent: Sequence[Facts], actor: str) -> None:
        """As ever where this replica leads; elsewhere what would have to be written waits for the one that does. Where
        another was faster, what it wrote is read again with the next report, and the files are compared with that."""
        try:
            if self.leads:
                await super().take(policies, recent, actor)
                return
            with _opened(self._ledger).only_reading():
                await super().take(policies, recent, FOLLOWED)
        except StaleWrite:
            structlog.get_logger().info("the policy files say something that another replica has to take")


class SharedMoves(Moves):
    """Moves candidates by evidence only where this replica leads."""

    def __init__(self, book: Book, intake: SharedIntake) -> None:
        super().__init__(book, intake)
        self._shared = intake

    async def tick(self) -> None:
        """As ever where this replica leads; nothing elsewhere."""
        if self._shared.leads:
            await super().tick()


class SharedGate:
    """Makes ``gate`` one of several, before it is opened; ``run`` follows the others from then on.

    ``name``: the replica's.
    """

    def __init__(self, gate: Gate, name: str) -> None:
        self._gate = gate
        self._name = name
        self._ledger = SharedLedger(name)
        self._intake = SharedIntake(gate.book, self._ledger)
        gate.book.ledger = self._ledger
        gate.intake = self._intake
        gate.moves = SharedMoves(gate.book, self._intake)

    @property
    def leads(self) -> bool:
        """Whether this replica moves candidates."""
        return self._intake.leads

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(REPORT_S)
            try:
                await self.follow()
            except Exception:  # noqa: BLE001 - the actor may be restarting; what is known goes on serving
                structlog.get_logger().exception("this replica could not report to the gate's actor")

    async def follow(self) -> None:
        """Report once, and take over what is new."""
        book, store = self._gate.book, _opened(self._ledger)
        async with book.lock:
            await book.save_evidence()
            keys = [(tracked.route, tracked.revision) for tracked in book.tracked()]
            news = await self._ledger.call(lambda _: store.report(keys))
            took_over, self._intake.leads = news.leads and not self._intake.leads, news.leads
            if news.serial != store.serial:
                await self._read_again(store, news.serial)
            else:
                self._adopt(store, news)
            if took_over:
                structlog.get_logger().info("this replica moves candidates now", replica=self._name)
                await self._take()

    def _adopt(self, store: SharedStore, news: News) -> None:
        """Evidence of all replicas, and what came here since it was asked for."""
        for tracked in self._gate.book.tracked():
            key = (tracked.route, tracked.revision)
            if key in news.totals and key in store.base:
                store.writes[key], total = news.totals[key]
                try:
                    mine = since(tracked.evidence, store.base[key])
                except Shrunk:
                    continue  # Begun anew here; that is written down as a move.
                tracked.evidence = added(total, mine, tracked.rules.mismatch)
                store.base[key] = copied(total)

    async def _read_again(self, store: SharedStore, serial: int) -> None:
        """Another replica has moved something, or switched something off."""
        gate, book = self._gate, self._gate.book
        while True:
            active = await self._active()
            if not any(tracked.dirty for tracked in book.tracked()):
                break
            # Evidence came meanwhile; what is read in its place has to have it.
            await book.save_evidence()
        store.serial = serial
        book.active, book.change = active, None
        await gate.switches.load()
        gate.backend.redecide(self._muted)
        await book.serve()
        await self._take()

    async def _active(self) -> dict[str, Tracked]:
        book = self._gate.book
        states = await self._ledger.call(lambda store: store.states())
        return {state.route: await book.load(state) for state in states if state.phase == "active"}

    async def _take(self) -> None:
        book = self._gate.book
        try:
            await self._intake.take(book.disk, (), FOLLOWED)
        except (PolicyError, SpecproxyError) as error:
            structlog.get_logger().error("what the policy files say cannot be taken over", problem=str(error))

    def _muted(self, decision: Decision) -> Decision:
        """As a switch that was thrown here would; also for work in shadow, whose routes have names of their own."""
        own = decision.route.partition(" (")[0]
        return replace(mute(replace(decision, route=own), self._gate.book.kills), route=decision.route)


def _opened(ledger: SharedLedger) -> SharedStore:
    if ledger.store is None:
        raise RuntimeError("the gate's ledger is used before it is open")
    return ledger.store
