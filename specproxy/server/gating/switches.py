"""Kill switches at work: thrown and lifted, kept on disk, logged, and felt by running streams at their next step."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from specproxy.errors import IllegalMove, InvalidRequest
from specproxy.gate.states import Move
from specproxy.server.engine_backend import EngineBackend
from specproxy.server.gating.book import Book, Tracked
from specproxy.server.gating.decider import CANDIDATE
from specproxy.server.gating.kills import Kill, mute, plain
from specproxy.vocabulary import Decision

AUDIT = "audit"
"""The actor of a kill that a hard mismatch caused."""


class Switches:
    """Speculation off, and on again."""

    def __init__(self, book: Book, backend: EngineBackend) -> None:
        self._book = book
        self._backend = backend

    async def load(self) -> None:
        """What was off when the last server ended is off now."""
        self._book.kills = await self._book.ledger.load_kills()

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
        # In memory first: nothing that the disk does may keep it from taking effect.
        book.kills = [*(item for item in book.kills if item.scope != kill.scope), kill]
        self._backend.redecide(self._muted)
        what = f"speculation off{'' if drafter is None else f' for {drafter}'}{'' if route else ' on every route'}"
        structlog.get_logger().error(what, route=route, actor=actor, reason=reason)
        await self._write(route, f"{what}: {reason}", actor)
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
        book.kills = [item for item in book.kills if item.route != route]
        structlog.get_logger().info("speculation on again", route=route, actor=actor, reason=reason)
        await self._write(route, f"speculation on again{'' if route else ' on every route'}: {reason}", actor)
        return lifted

    def plain_candidate(self, decision: Decision) -> Decision:
        """What a candidate's stream goes on with when its candidate is given up."""
        return plain(decision, "its candidate was given up") if decision.arm == CANDIDATE else decision

    def _muted(self, decision: Decision) -> Decision:
        """As ``mute``, also for work in shadow, whose routes have names of their own."""
        own = decision.route.partition(" (")[0]
        return replace(mute(replace(decision, route=own), self._book.kills), route=decision.route)

    async def _write(self, route: str | None, what: str, actor: str) -> None:
        """Keep the switches, and put a line for each route that it concerns into the audit log."""
        book = self._book
        async with book.lock:
            await book.ledger.save_kills(list(book.kills))
            concerned: Sequence[Tracked] = [t for name, t in book.active.items() if route in (None, name)]
            if concerned:
                await book.commit([(t, Move(t.state, t.state, what)) for t in concerned], actor)
        book.changed()
