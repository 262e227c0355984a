"""Kill switches at work: thrown and lifted, kept on disk with the log's lines of them, and felt by running streams at
their next step."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from msgspec.structs import replace

from specproxy.errors import IllegalMove, InvalidRequest
from specproxy.gate.kills import Kill
from specproxy.gate.states import Move
from specproxy.server.engine_backend import EngineBackend
from specproxy.server.gating.book import Book, Tracked
from specproxy.server.gating.decider import CANDIDATE
from specproxy.server.gating.kills import mute, plain
from specproxy.vocabulary import Decision

AUDIT = "audit"
"""The actor of a kill that a hard mismatch caused."""


class Switches:
    """Speculation off, and on again."""

    def __init__(self, book: Book, backend: EngineBackend) -> None:
        self._book = book
        self._backend = backend
        self._stored: list[Kill] = []

    async def load(self) -> None:
        """What was off when the last server ended is off now."""
        self._stored = await self._book.ledger.call(lambda store: store.kills())
        self._book.kills = list(self._stored)

    async def kill(self, route: str | None, drafter: str | None, *, reason: str, actor: str) -> Kill:
        """Off from the next step on: of one drafter or of all, on a route or on all. Raises InvalidRequest without a
        reason."""
        if not reason.strip():
            raise InvalidRequest("kill needs a reason: the audit log keeps it", param="reason")
        book = self._book
        kill = Kill(route, drafter, reason, actor, book.clock())
        before = [item for item in book.kills if item.scope == kill.scope]
        if before and actor == AUDIT:
            return before[0]

        def throw(kills: list[Kill]) -> list[Kill]:
            return [*(item for item in kills if item.scope != kill.scope), kill]

        # In memory first: nothing that the disk does may keep it from taking effect.
        book.kills = throw(book.kills)
        self._backend.redecide(self._muted)
        what = f"speculation off{'' if drafter is None else f' for {drafter}'}{'' if route else ' on every route'}"
        log = structlog.get_logger()
        (log.error if actor == AUDIT else log.warning)(what, route=route, actor=actor, reason=reason)
        await self._write(throw, route, f"{what}: {reason}", actor)
        book.changed()
        return kill

    async def lift(self, route: str | None, *, reason: str, actor: str) -> list[Kill]:
        """On again for requests that come from now on: everything that was off for that route, or the switch of all.

        Raises IllegalMove where nothing is off.
        """
        if not reason.strip():
            raise InvalidRequest("lift needs a reason: the audit log keeps it", param="reason")
        book = self._book
        lifted = [item for item in book.kills if item.route == route]
        if not lifted:
            where = "the switch of all routes" if route is None else f"route {route}"
            others = ", ".join(item.route or "all routes" for item in book.kills) or "nothing"
            raise IllegalMove(f"{where} is not off; off is: {others}")

        def lift(kills: list[Kill]) -> list[Kill]:
            return [item for item in kills if item not in lifted]

        # On disk first: what cannot be written stays off, and so does what came while it was written.
        await self._write(lift, route, f"speculation on again{'' if route else ' on every route'}: {reason}", actor)
        book.kills = lift(book.kills)
        structlog.get_logger().info("speculation on again", route=route, actor=actor, reason=reason)
        book.changed()
        return lifted

    def plain_candidate(self, decision: Decision) -> Decision:
        """What a candidate's stream goes on with when its candidate is given up."""
        return plain(decision, "its candidate was given up") if decision.arm == CANDIDATE else decision

    def _muted(self, decision: Decision) -> Decision:
        """As ``mute``, also for work in shadow, whose routes have names of their own."""
        own = decision.route.partition(" (")[0]
        return replace(mute(replace(decision, route=own), self._book.kills), route=decision.route)

    async def _write(
        self, change: Callable[[list[Kill]], list[Kill]], route: str | None, what: str, actor: str
    ) -> None:
        """Change what is off on disk, together with a line in the audit log for each revision that it concerns."""
        book = self._book
        async with book.lock:
            kills = change(self._stored)
            moves = [(tracked, Move(tracked.state, tracked.state, what)) for tracked in await self._concerned(route)]
            await book.commit(moves, actor, kills)
            self._stored = kills

    async def _concerned(self, route: str | None) -> list[Tracked]:
        """What serves; of a route that does not yet, or no more, its newest revision."""
        book = self._book
        if active := [tracked for name, tracked in book.active.items() if route in (None, name)]:
            return active
        member = None if book.change is None or route is None else book.change.members.get(route)
        if member is not None:
            return [member]
        return [await book.load(state) for state in await book.ledger.call(lambda store: store.states(route)[-1:])]
