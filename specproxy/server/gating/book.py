"""What the gate knows, in memory: what serves, what is on its way, what is off. The ledger has the same on disk.

Only the event loop's thread looks into it. Whoever changes it holds ``lock``, writes to the ledger first, and then
here, so that a crash leaves the older truth and never a mixture.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from specproxy.gate.assessment import Assessment
from specproxy.gate.evidence import Evidence, no_evidence
from specproxy.gate.kills import Kill
from specproxy.gate.rules import Rules, rules_for
from specproxy.gate.states import ENDS, GateState, Move, Phase
from specproxy.gate.store import GateStore, Revision, Transition
from specproxy.policy.policy import PolicySet
from specproxy.server.gating.contents import compiled, fingerprints, route_of
from specproxy.server.gating.ledger import Ledger

Mode = Literal["off", "auto", "manual"]

MOST_SHARE = 0.95
"""Of a route's conversations, what a canary serves at its last step."""

JUDGED: frozenset[Phase] = frozenset({"rejected", "rolled_back"})
"""Ends that only a person's word leads out of, whatever the files say."""

GATE = "gate"
"""The actor of moves that evidence makes."""


@dataclass(eq=False)
class Tracked:
    """A revision of a route that the gate follows. ``assessment``: when the gate last looked; ``reason``: of its last
    move, or what it waits for; ``dirty``: evidence that is not on disk yet."""

    content: Revision
    state: GateState
    evidence: Evidence
    rules: Rules
    assessment: Assessment | None = None
    reason: str = ""
    dirty: bool = False

    @property
    def route(self) -> str:
        """Its route."""
        return self.state.route

    @property
    def revision(self) -> str:
        """Its revision, 64 hex digits."""
        return self.state.revision

    @property
    def pending(self) -> bool:
        """Whether it is on its way, or paused."""
        return self.state.phase not in ENDS and self.state.phase != "active"


@dataclass(eq=False)
class Change:
    """What the policy files say and does not serve yet. ``linked``: it moves requests between routes, so that its
    members only move together; ``removed``: routes that it has no more."""

    policies: PolicySet
    linked: bool
    members: dict[str, Tracked] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    def groups(self) -> list[list[Tracked]]:
        """Members that move as one, as far as they are on their way."""
        pending = [member for member in self.members.values() if member.pending]
        if not self.linked:
            return [[member] for member in pending]
        return [pending] if pending and len(pending) == len(self.members) else []

    def group_of(self, route: str) -> list[Tracked]:
        """The members that move with ``route``; none where nothing of it is on its way."""
        return next((group for group in self.groups() if any(member.route == route for member in group)), [])

    def share_of(self, route: str) -> float:
        """The share of the route's conversations that the candidate serves: never all of them before it is active, as
        live evidence needs something to compare with."""
        share = min((member.state.share(member.rules) for member in self.group_of(route)), default=0.0)
        return min(share, MOST_SHARE)

    def salt_of(self, route: str) -> str:
        """What the canary's lot is drawn with: the same for all that moves together."""
        return self.policies.hash if self.linked else self.members[route].revision


class Book:
    """The gate's memory. ``disk``: the valid set that was read last; ``serving``: what decides. ``on_serving`` hears of
    every set that comes into force, ``on_move`` of every move that is
    written, and who made it."""

    def __init__(self, policies: PolicySet, clock: Callable[[], float]) -> None:
        self.ledger = Ledger()
        self.lock = asyncio.Lock()
        self.clock = clock
        self.disk = policies
        self.serving = policies
        self.active: dict[str, Tracked] = {}
        self.change: Change | None = None
        self.kills: list[Kill] = []
        self.log_size = 0
        self.drifted: dict[str, tuple[str, ...]] = {}
        self.on_serving: Callable[[PolicySet], None] = lambda _: None
        self.on_move: Callable[[Move, str], None] = lambda found, actor: None
        self._announced = ""
        self._listeners: set[asyncio.Event] = set()

    def find(self, route: str, revision: str) -> Tracked | None:
        """The active revision or the candidate of that name."""
        member = self.change.members.get(route) if self.change else None
        for tracked in (self.active.get(route), member):
            if tracked is not None and tracked.revision == revision:
                return tracked
        return None

    def tracked(self) -> list[Tracked]:
        """Everything that evidence is gathered of."""
        members = self.change.members.values() if self.change else ()
        return [*self.active.values(), *(member for member in members if member.pending)]

    async def commit(
        self, moves: Sequence[tuple[Tracked, Move]], actor: str, kills: Sequence[Kill] | None = None
    ) -> None:
        """Write moves, all or none, and with them ``kills``, where something else is off from now on. Raises
        StaleWrite, IllegalMove."""
        now = self.clock()
        transitions = [Transition(move, actor, now, copy_of(t.evidence), t.rules) for t, move in moves]
        stored = await self.ledger.call(lambda store: store.commit(transitions, kills))
        for (tracked, move), state in zip(moves, stored, strict=True):
            tracked.state, tracked.reason = state, move.reason
            self.on_move(move, actor)
        self.log_size += len(moves)
        self.changed()

    async def submit(self, content: Revision, move: Move, evidence: Evidence, rules: Rules, actor: str) -> Tracked:
        """Keep a revision that was never seen before."""
        transition = Transition(move, actor, self.clock(), evidence, rules)
        state = await self.ledger.call(lambda store: store.submit(content, transition))
        self.log_size += 1
        self.on_move(move, actor)
        self.changed()
        return Tracked(content, state, evidence, rules, reason=move.reason)

    async def load(self, state: GateState, rules: Rules | None = None) -> Tracked:
        """What the ledger knows of a revision. ``rules``: its own, where none are given."""
        route, revision = state.route, state.revision
        content, evidence = await self.ledger.call(
            lambda store: (store.revision(route, revision), store.evidence(route, revision))
        )
        return Tracked(content, state, evidence, rules or rules_of(content, mode_of(content)))

    async def save_evidence(self) -> None:
        """Put evidence on disk that came since the last time."""
        dirty = [tracked for tracked in self.tracked() if tracked.dirty]
        if not dirty:
            return
        copies = [(t.state, copy_of(t.evidence)) for t in dirty]
        for tracked in dirty:
            tracked.dirty = False

        def save(store: GateStore) -> None:
            for state, evidence in copies:
                store.save_evidence(state, evidence)

        await self.ledger.call(save)

    async def serve(self) -> None:
        """Compile what is active and let it serve; the set on disk serves itself where it says the same. Raises
        PolicyError where what is active cannot be served any more."""
        known = self.disk
        contents = sorted((t.content for t in self.active.values()), key=lambda item: (item.position, item.route))
        found = await asyncio.to_thread(compiled, contents, known.catalogue)
        self.serving = known if found.hash == known.hash else found
        self.drifted = {name: names for name, t in self.active.items() if (names := self._drift(t, known))}
        if self._announced != self.serving.hash:
            self._announced = self.serving.hash
            self.on_serving(self.serving)
        self.changed()

    def _drift(self, tracked: Tracked, known: PolicySet) -> tuple[str, ...]:
        """Drafters of an active route whose weights are not those that it became active with."""
        route = route_of(self.serving, tracked.route)
        if route is None:
            return ()
        now = fingerprints(route, known.catalogue)
        return tuple(name for name, found in now.items() if tracked.content.drafters.get(name) != found)

    def changed(self) -> None:
        """Wake everybody who watches."""
        for event in self._listeners:
            event.set()

    def listen(self) -> asyncio.Event:
        """An event that every change sets; hand it back with ``ignore``."""
        event = asyncio.Event()
        self._listeners.add(event)
        return event

    def ignore(self, event: asyncio.Event) -> None:
        """Nobody waits on it any more."""
        self._listeners.discard(event)


def fresh(rules: Rules) -> Evidence:
    """The evidence of a candidate whose files are a valid set and whose drafters are loaded: none yet."""
    evidence = no_evidence(rules)
    evidence.problems, evidence.loaded = [], True
    return evidence


def copy_of(evidence: Evidence) -> Evidence:
    """What is known now, for another thread: the original goes on growing."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(evidence), type=Evidence)


def mode_of(content: Revision) -> Mode:
    """The mode that a revision's own settings say."""
    mode = content.effective().gate.mode
    return "off" if isinstance(mode, bool) else mode


def rules_of(content: Revision, mode: Mode, *, moved: bool = False) -> Rules:
    """The rules of a revision, under the mode of what it would replace: an edit cannot switch off the gate that it has
    to pass. ``moved``: its own text stays, so that it cannot be asked to be faster."""
    rules = msgspec.structs.replace(rules_for(content.effective()), mode=mode)
    return msgspec.structs.replace(rules, goal="no_worse") if moved else rules


def strictest(modes: Iterable[str]) -> Mode:
    """The mode that holds for routes that move together."""
    found = set(modes)
    return "manual" if "manual" in found else "auto" if "auto" in found else "off"
