"""The gate's moves: those that evidence makes at every tick, and those that a person orders."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from specproxy.errors import IllegalMove, StaleWrite, UnknownRevision
from specproxy.gate.machine import move
from specproxy.gate.orders import Order, hand_back, obey
from specproxy.gate.states import ENDS, GateState, Move
from specproxy.server.gating.book import GATE, JUDGED, Book, Change, Tracked, copy_of, fresh
from specproxy.server.gating.contents import route_of
from specproxy.server.gating.intake import Intake

BACKWARD = ENDS | {"paused"}
_ORDER = ("draft", "validated", "shadow", "canary", "active")

Group = Sequence[Tracked]


class Moves:
    """Acts on what is known. Callers hold the book's lock."""

    def __init__(self, book: Book, intake: Intake) -> None:
        self._book = book
        self._intake = intake

    async def tick(self) -> None:
        """Make every move that evidence makes now."""
        book = self._book
        if (change := book.change) is not None:
            for group in change.groups():
                while all(member.pending for member in group) and await self._advance(change, group):
                    pass
        for tracked in list(book.active.values()):
            if (
                tracked.state.replaced is None
                or not _incorrect(tracked)
                or book.active.get(tracked.route) is not tracked
            ):
                continue
            found = await _look(tracked, book.clock())
            if found.changed:
                await self._roll_back(tracked, found, GATE)

    async def order(
        self, order: Order, route: str, revision: str, *, reason: str, actor: str, version: int | None, force: bool
    ) -> GateState:
        """Obey a person, for the state of that ``version`` where one is given; the state afterwards.

        Raises UnknownRevision, StaleWrite, IllegalMove; then nothing has changed.
        """
        book = self._book
        tracked = book.find(route, revision) or await self._elsewhere(route, revision)
        if version is not None and tracked.state.version != version:
            raise StaleWrite(
                f"{route} {revision[:12]} is {tracked.state.phase} by now, at version {tracked.state.version}; the "
                f"order was made for version {version}; read it again"
            )
        if order == "resubmit":
            return await self._resubmit(tracked, reason, actor)
        found = obey(order, tracked.state, tracked.evidence, tracked.rules, book.clock(), reason=reason, force=force)
        if tracked.state.phase == "active":
            if tracked.state.replaced is None:
                raise IllegalMove(
                    f"rollback of {route} {revision[:12]}: nothing served before it; edit the policy files instead"
                )
            await self._roll_back(tracked, found, actor)
            return tracked.state
        change = book.change
        group = change.group_of(route) if change is not None else []
        if change is None or tracked not in group:
            raise IllegalMove(f"{order} of {route} {revision[:12]}: it is not what the policy files say now")
        moves = [
            (
                member,
                found
                if member is tracked
                else obey(
                    order,
                    member.state,
                    member.evidence,
                    member.rules,
                    book.clock(),
                    reason=f"{reason} (with {route})",
                    force=force,
                ),
            )
            for member in group
        ]
        await self._write(change, moves, actor)
        return tracked.state

    async def _advance(self, change: Change, group: Group) -> bool:
        """One move of a group; whether there was one."""
        now = self._book.clock()
        found = [(m, await _look(m, now)) for m in group]
        for member, each in found:
            member.reason = each.reason
        back = next((pair for pair in found if _backward(pair[1])), None)
        if back is not None:
            await self._book.commit([(m, each if m is back[0] else _with(m, back[1])) for m, each in found], GATE)
            self._tell(back[1], GATE)
            return False
        least = min(_rank(member.state) for member in group)
        last = [(m, each) for m, each in found if _rank(m.state) == least]
        if not all(each.changed for _, each in last):
            return False
        if len(last) < len(group) and any(each.after.phase == "active" for _, each in last):
            return False
        await self._write(change, last, GATE)
        return True

    async def _write(self, change: Change, moves: Sequence[tuple[Tracked, Move]], actor: str) -> None:
        if all(each.after.phase == "active" for _, each in moves):
            await self._intake.activate(change.policies, moves, actor, whole=change.linked)
        else:
            await self._book.commit(moves, actor)
        for _, each in moves:
            self._tell(each, actor)

    async def _roll_back(self, tracked: Tracked, found: Move, actor: str) -> None:
        """What served before serves again. Of routes that came together by a change of conditions, all go."""
        book = self._book
        batch: list[tuple[Tracked, Move]] = []
        returning: list[Tracked] = []
        for each in await self._together(tracked):
            own = found if each is tracked else _with(each, found)
            previous = await self._previous(each)
            moves = hand_back(own, None if previous is None else previous.state, book.clock())
            batch += zip([each] if previous is None else [each, previous], moves, strict=True)
            returning += [] if previous is None else [previous]
        for gone in await self._removed_with(tracked):
            after = replace(gone.state, phase="active", entered=book.clock())
            batch.append((gone, Move(gone.state, after, f"{tracked.revision[:12]} was rolled back")))
            returning.append(gone)
        await book.commit(batch, actor)
        for leaving, _ in batch:
            if book.active.get(leaving.route) is leaving:
                del book.active[leaving.route]
        for previous in returning:
            book.active[previous.route] = previous
        await book.serve()
        self._tell(found, actor)
        await self._intake.take(book.disk, (), actor)

    async def _together(self, tracked: Tracked) -> list[Tracked]:
        """The active revisions that have to go with this one, itself first."""
        previous = await self._previous(tracked)
        alone = previous is not None and (
            previous.content.match == tracked.content.match and previous.content.position == tracked.content.position
        )
        if alone:
            return [tracked]
        entered = tracked.state.entered
        others = [t for t in self._book.active.values() if t is not tracked and t.state.entered == entered]
        return [tracked, *others]

    async def _previous(self, tracked: Tracked) -> Tracked | None:
        replaced = tracked.state.replaced
        return None if replaced is None else await self._elsewhere(tracked.route, replaced)

    async def _removed_with(self, tracked: Tracked) -> list[Tracked]:
        """Routes that were taken out when this revision became active."""
        book = self._book
        states = await book.ledger.call(lambda store: store.states())
        gone = [
            state
            for state in states
            if state.phase == "superseded"
            and state.entered == tracked.state.entered
            and state.route not in book.active
            and route_of(book.serving, state.route) is None
        ]
        return [await book.load(state) for state in gone]

    async def _resubmit(self, tracked: Tracked, reason: str, actor: str) -> GateState:
        book, change = self._book, self._book.change
        if change is None or change.members.get(tracked.route) is not tracked:
            raise IllegalMove(
                f"resubmit of {tracked.route} {tracked.revision[:12]}: a candidate is what the policy files say; "
                "put it back there"
            )
        evidence = fresh(tracked.rules)
        found = obey("resubmit", tracked.state, evidence, tracked.rules, book.clock(), reason=reason)
        tracked.evidence = evidence
        await book.commit([(tracked, found)], actor)
        self._tell(found, actor)
        return tracked.state

    async def _elsewhere(self, route: str, revision: str) -> Tracked:
        """A revision that only the ledger knows. Raises UnknownRevision."""
        states = await self._book.ledger.call(lambda store: store.states(route))
        for state in states:
            if state.revision == revision:
                return await self._book.load(state)
        raise UnknownRevision(f"route {route} has no revision {revision[:12]}; see the list of its revisions")

    def _tell(self, found: Move, actor: str) -> None:
        """An error is what the gate had to stop; what a person takes back is no fault of anything."""
        log, ended = structlog.get_logger(), found.after.phase in JUDGED
        (log.info if not ended else log.error if actor == GATE else log.warning)(
            "gate",
            route=found.after.route,
            revision=found.after.revision[:12],
            before=found.before.phase,
            after=found.after.phase,
            step=found.after.step,
            reason=found.reason,
            actor=actor,
        )


async def _look(tracked: Tracked, now: float) -> Move:
    """The move that evidence makes. In a thread: tails with many values take tens of milliseconds."""
    found = await asyncio.to_thread(move, tracked.state, copy_of(tracked.evidence), tracked.rules, now)
    tracked.assessment = found.evidence
    return found


def _incorrect(tracked: Tracked) -> bool:
    """Whether there is anything for which what serves could be rolled back."""
    evidence = tracked.evidence
    return evidence.mismatches.rejected or evidence.live.engine_errors > 0 or evidence.shadow.engine_errors > 0


def _rank(state: GateState) -> tuple[int, int]:
    return (_ORDER.index(state.phase) if state.phase in _ORDER else -1, state.step)


def _backward(found: Move) -> bool:
    """Whether it takes traffic away."""
    if not found.changed:
        return False
    lower = found.after.phase == found.before.phase == "canary" and found.after.step < found.before.step
    return lower or found.after.phase in BACKWARD


def _with(member: Tracked, found: Move) -> Move:
    """The same move of another member of the group."""
    state, after = member.state, found.after
    phase = after.phase
    if phase in JUDGED and state.phase != found.before.phase:
        phase = "rolled_back" if state.phase in ("canary", "active") else "rejected"
    step = min(state.step, after.step)
    moved = replace(
        state,
        phase=phase,
        entered=after.entered if phase != state.phase else state.entered,
        step=step,
        step_from=member.evidence.live.num_candidate if phase == "canary" else 0,
        paused_from=state.phase if phase == "paused" else None,
    )
    return Move(state, moved, f"with route {after.route}: {found.reason}")
