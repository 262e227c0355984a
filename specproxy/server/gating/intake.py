"""From an edit of the policy files to candidates, or at once to what serves where the route has no gate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import structlog
from msgspec.structs import replace

from specproxy.gate.orders import hand_over, obey, supersede
from specproxy.gate.states import ENDS, Move, new_state
from specproxy.policy.facts import Facts
from specproxy.policy.plan import plan
from specproxy.policy.policy import PolicySet
from specproxy.server.gating.book import JUDGED, Book, Change, Mode, Tracked, fresh, mode_of, rules_of, strictest
from specproxy.server.gating.contents import (
    content_of,
    in_context,
    only_watched_otherwise,
    route_of,
    skeleton,
)

START = "start"
WATCHER = "file watcher"

FIRST_START = "the first start: what the policy files say"
NO_GATE = "this route has no gate: an edit is active at once"
ONLY_WATCHED = "only how the route is watched changes: active at once"


class Intake:
    """Compares what the files say with what serves. Callers hold the book's lock."""

    def __init__(self, book: Book) -> None:
        self._book = book

    async def open(self) -> None:
        """The first time what the files say serves; later what served last does, and the files are an edit.

        Raises PolicyError where what served last needs something that is gone, StoreDamaged where the file does not
        agree with itself.
        """
        book = self._book
        book.log_size = await book.ledger.call(lambda store: store.verify())
        entries = await book.ledger.call(lambda store: store.states())
        for state in entries:
            if state.phase == "active":
                book.active[state.route] = await book.load(state)
        if not book.active:
            names = [route.name for route in book.disk.routes]
            await self._at_once(book.disk, names, START, FIRST_START, whole=True)
        await book.serve()
        await self.take(book.disk, (), START)

    async def take(self, policies: PolicySet, recent: Sequence[Facts], actor: str) -> None:
        """A valid set was read. ``recent``: the last requests, which show whose traffic it would move."""
        book = self._book
        book.disk = policies
        edited = [route.name for route in policies.routes if self._edited(policies, route.name)]
        if skeleton(policies) != skeleton(book.serving):
            await self._take_linked(policies, edited, recent, actor)
            return
        watched = [name for name in edited if self._only_watched(policies, name)]
        free = [name for name in edited if name not in watched and book.active[name].rules.mode == "off"]
        gated = [name for name in edited if name not in watched and name not in free]
        await self._at_once(policies, watched, actor, ONLY_WATCHED, whole=False)
        await self._at_once(policies, free, actor, NO_GATE, whole=False)
        change = Change(policies, linked=False)
        for name in gated:
            mode = book.active[name].rules.mode
            await self.enlist(change, name, mode, actor)
        await self._install(change, actor)

    async def cover(self, names: Iterable[str]) -> None:
        """Requests showed that a linked change moves the traffic of these routes too."""
        change = self._book.change
        if change is None or not change.linked:
            return
        for name in names:
            if name not in change.members and route_of(change.policies, name) is not None:
                await self.enlist(change, name, self._mode(change.policies, change.members), WATCHER)

    async def activate(
        self, policies: PolicySet, moves: Sequence[tuple[Tracked, Move]], actor: str, *, whole: bool
    ) -> None:
        """Write moves to active and let the result serve. ``whole``: with the set's order, and without the routes that
        it has no more."""
        book = self._book
        # One moment for all that comes together, by which a rollback finds it again.
        now = moves[0][1].after.entered if moves else book.clock()
        moves = list(moves)
        if whole:
            moves += await self._carried(policies, {tracked.route for tracked, _ in moves}, actor, now)
        batch: list[tuple[Tracked, Move]] = []
        for tracked, move in moves:
            serving = book.active.get(tracked.route)
            steps = hand_over(move, None if serving is None else serving.state, now)
            batch += zip([tracked] if serving is None else [serving, tracked], steps, strict=True)
        gone = [t for name, t in book.active.items() if whole and route_of(policies, name) is None]
        batch += [(tracked, supersede(tracked.state, policies.hash, now)) for tracked in gone]
        await book.commit(batch, actor)
        book.active |= {tracked.route: tracked for tracked, _ in moves}
        for tracked in gone:
            del book.active[tracked.route]
        for tracked, _ in moves:
            tracked.rules = rules_of(tracked.content, mode_of(tracked.content))
            if book.change is not None and book.change.members.get(tracked.route) is tracked:
                del book.change.members[tracked.route]
        if book.change is not None and not book.change.members:
            book.change = None
        await book.serve()

    async def enlist(self, change: Change, name: str, mode: Mode, actor: str) -> None:
        """Make a route of ``change.policies`` a member of it, new or as the ledger knows it."""
        member = await self._member(change.policies, name, mode, actor)
        change.members[name] = member
        if member.state.phase in JUDGED:
            structlog.get_logger().warning(
                "this revision was judged before; edit the file, or resubmit it with a reason",
                route=name,
                revision=member.revision[:12],
                phase=member.state.phase,
            )
        elif member.state.phase in ENDS:
            member.evidence = fresh(member.rules)
            reason = "the policy files say it again"
            move = obey("resubmit", member.state, member.evidence, member.rules, self._book.clock(), reason=reason)
            await self._book.commit([(member, move)], actor)

    async def _take_linked(
        self, policies: PolicySet, edited: Sequence[str], recent: Sequence[Facts], actor: str
    ) -> None:
        """Conditions or order changed: every route whose traffic that moves is changed, and they move together."""
        book = self._book
        order = [route.name for route in policies.routes if route.name in book.active]
        before = [route.name for route in book.serving.routes if route_of(policies, route.name) is not None]
        displaced = [name for name, other in zip(order, before, strict=True) if name != other]
        flows = plan(recent, book.serving, policies).flows
        moved = [name for flow in flows for name in (flow.before, flow.after)]
        touched = dict.fromkeys([*edited, *displaced, *moved])
        removed = tuple(name for name in book.active if route_of(policies, name) is None)
        mode = self._mode(policies, [*touched, *removed])
        if mode == "off":
            await self._at_once(policies, edited, actor, NO_GATE, whole=True)
            await self._install(Change(policies, linked=True), actor)
            return
        change = Change(policies, linked=True, removed=removed)
        for name in touched:
            if route_of(policies, name) is not None:
                await self.enlist(change, name, mode, actor)
        await self._install(change, actor)

    def _mode(self, policies: PolicySet, names: Iterable[str]) -> Mode:
        """The strictest gate among routes: of what serves, or of a new route's own."""
        modes = []
        for name in names:
            if name in self._book.active:
                modes.append(self._book.active[name].rules.mode)
            else:
                modes.append(mode_of(content_of(policies, name, "", 0.0)))
        return strictest(modes)

    async def _install(self, change: Change, actor: str) -> None:
        """Make it the change that is on its way; what was before and is not part of it is superseded."""
        book, now = self._book, self._book.clock()
        old = book.change
        book.change = change if change.members else None
        kept = {member.revision for member in change.members.values()}
        dropped = [] if old is None else [m for m in old.members.values() if m.pending and m.revision not in kept]
        if dropped:
            await book.commit([(m, supersede(m.state, change.policies.hash, now)) for m in dropped], actor)
        await self._drop_strays(kept, actor)
        book.changed()

    async def _drop_strays(self, kept: set[str], actor: str) -> None:
        """Candidates of a server that ended, which the files do not speak of any more."""
        book, now = self._book, self._book.clock()
        for state in await book.ledger.call(lambda store: store.states()):
            if state.phase not in ENDS and state.phase != "active" and state.revision not in kept:
                stray = await book.load(state)
                await book.commit([(stray, supersede(state, book.disk.hash, now))], actor)

    async def _at_once(
        self, policies: PolicySet, names: Sequence[str], actor: str, reason: str, *, whole: bool
    ) -> None:
        """Let routes of ``policies`` serve without asking for evidence."""
        moves, now = [], self._book.clock()
        for name in names:
            member = await self._member(policies, name, "off", actor)
            if member.state.phase in JUDGED:
                structlog.get_logger().error("this revision was rolled back before: it does not serve", route=name)
                continue
            moves.append((member, _straight(member, reason, now)))
        if moves or whole:
            await self.activate(policies, moves, actor, whole=whole)

    async def _carried(
        self, policies: PolicySet, members: set[str], actor: str, now: float
    ) -> list[tuple[Tracked, Move]]:
        """Routes that only change their place in the order."""
        moves = []
        for position, route in enumerate(policies.routes):
            active = self._book.active.get(route.name)
            if route.name in members or active is None or active.content.position == position:
                continue
            tracked = await self._member(policies, route.name, active.rules.mode, actor)
            moves.append((tracked, _straight(tracked, "another route came, went or moved before it", now)))
        return moves

    async def _member(self, policies: PolicySet, name: str, mode: Mode, actor: str) -> Tracked:
        """The revision of a route under which the gate knows it in this set; submitted where it is new."""
        book, route = self._book, route_of(policies, name)
        if route is None:
            raise ValueError(f"{name} is no route of this set")
        text = route.decision.revision
        revision = text if self._edited(policies, name) else in_context(text, policies)
        content = content_of(policies, name, revision, book.clock())
        active = book.active.get(name)
        same = active is not None and active.content.settings == content.settings
        rules = rules_of(
            content, mode, moved=same and active is not None and active.content.drafters == content.drafters
        )
        old = book.change.members.get(name) if book.change else None
        if old is not None and old.revision == revision:
            return old
        known = [s for s in await book.ledger.call(lambda store: store.states(name)) if s.revision == revision]
        if known:
            return await book.load(known[0], rules)
        state = new_state(name, revision, book.clock())
        where = "the first start" if actor == START else f"found by the {actor}"
        return await book.submit(content, Move(state, state, f"handed in: {where}"), fresh(rules), rules, actor)

    def _edited(self, policies: PolicySet, name: str) -> bool:
        """Whether the route itself is not what serves: its text, or the weights of its drafters."""
        new, old = route_of(policies, name), route_of(self._book.serving, name)
        active = self._book.active.get(name)
        if new is None or old is None or active is None:
            return True
        return new.decision.revision != old.decision.revision or name in self._book.drifted

    def _only_watched(self, policies: PolicySet, name: str) -> bool:
        new = content_of(policies, name, "", 0.0)
        return only_watched_otherwise(self._book.active[name].content, new)


def _straight(tracked: Tracked, reason: str, now: float) -> Move:
    """To active, whatever evidence says."""
    after = replace(tracked.state, phase="active", entered=now, step=0, step_from=0, paused_from=None)
    return Move(tracked.state, after, reason)
