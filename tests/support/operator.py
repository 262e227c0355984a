"""An operator over a real gate store, whose numbers a test sets: what the admin API and the dashboard are tested on."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from specproxy.bundle import AuditBundle
from specproxy.errors import ConfigError, IllegalMove, InvalidRequest, NotFound, StaleWrite
from specproxy.gate.assessment import SPEED, Assessment, assess
from specproxy.gate.orders import Order, hand_back, hand_over, obey
from specproxy.gate.rules import Rules, rules_for
from specproxy.gate.sqlite_store import SqliteStore
from specproxy.gate.states import GateState, Move
from specproxy.gate.store import AuditEntry, Transition
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.explain import Explanation, explain
from specproxy.policy.plan import Plan, plan
from specproxy.policy.policy import PolicySet
from specproxy.policy.request_file import as_envelope
from specproxy.server.admin.operator import (
    Audits,
    BundleInfo,
    Candidate,
    Count,
    Depth,
    Figure,
    Gain,
    KPoint,
    Log,
    LogEntry,
    Percentiles,
    RevisionInfo,
    Revisions,
    RouteStatus,
    Status,
    Switch,
    Validation,
    etag_of,
)


@dataclass
class Numbers:
    """What the server would have measured on each route."""

    requests: int = 0
    speedup: Gain | None = None
    acceptance: list[Depth] = field(default_factory=list)
    k: list[KPoint] = field(default_factory=list)
    ttft: Percentiles | None = None
    inter_token: Percentiles | None = None
    audits: Audits = Audits()


class StoreOperator:
    """Obeys over ``store``. ``requests``: bodies that ``plan`` asks about; ``bundles``: what is in memory. ``tell``
    says that numbers have changed; ``pause`` is awaited within each order, for tests of what happens meanwhile."""

    def __init__(self, store: SqliteStore, policies: PolicySet, catalogue: Catalogue) -> None:
        self.store, self.policies, self.catalogue = store, policies, catalogue
        self.numbers: dict[str, Numbers] = {}
        self.requests: list[dict[str, Any]] = []
        self.bundles: dict[str, AuditBundle] = {}
        self.mismatches: list[BundleInfo] = []
        self.warnings: list[str] = []
        self.switches: dict[str | None, Switch] = {}
        self.listeners: set[asyncio.Event] = set()
        self.pause: Callable[[], Any] | None = None

    def tell(self) -> None:
        """Something has changed."""
        for event in self.listeners:
            event.set()

    async def status(self) -> Status:
        """As the protocol says."""
        names = list(dict.fromkeys(state.route for state in self.store.states()))
        return Status(
            time=time.time(),
            version="0",
            engine="ready",
            exactness="bitwise",
            policies=self.policies.hash,
            killed=self.switches.get(None),
            routes=[self._route(name) for name in names],
            mismatches=self.mismatches,
            warnings=self.warnings,
            log=self._last(),
        )

    async def revisions(self, route: str) -> Revisions:
        """As the protocol says."""
        return Revisions(route, [self._info(state) for state in self._states(route)])

    async def log(self, after: int, limit: int) -> Log:
        """As the protocol says."""
        return Log([_line(entry) for entry in self.store.log(after=after, limit=limit)], self._last())

    async def validate(self, files: Mapping[str, str]) -> Validation:
        """As the protocol says."""
        found, problems, warnings = self._read(files)
        if found is None:
            return Validation(False, problems, warnings, None, [])
        return Validation(True, [], warnings, found.hash, plan([], self.policies, found).routes)

    async def explain(self, request: Mapping[str, Any]) -> Explanation:
        """As the protocol says."""
        try:
            return explain(self.policies, as_envelope(request, "request").facts())
        except ConfigError as error:
            raise InvalidRequest(str(error), param="request") from None

    async def plan(self, files: Mapping[str, str]) -> Plan:
        """As the protocol says."""
        found, problems, _ = self._read(files)
        if found is None:
            raise InvalidRequest("\n".join(problems), param="files")
        return plan([as_envelope(body, "request").facts() for body in self.requests], self.policies, found)

    async def order(
        self, route: str, action: Order, revision: str, *, reason: str, actor: str, etag: str, force: bool
    ) -> RevisionInfo:
        """As the protocol says."""
        self._states(route)
        state = self.store.state(route, revision)
        if self.pause is not None:
            await self.pause()
        if etag_of(state) != etag:
            raise StaleWrite(f"{route} {revision[:12]} is at {etag_of(state)} by now, not {etag}; read it again")
        moved = obey(
            action, state, self.store.evidence(route, revision), self._rules(state), time.time(), reason=reason,
            force=force,
        )  # fmt: skip
        self._write(self._with_others(moved), actor)
        return self._info(self.store.state(route, revision))

    async def kill(self, route: str | None, *, reason: str, actor: str) -> Switch:
        """As the protocol says."""
        if route is not None:
            self._states(route)
        self.switches[route] = Switch(route, True, reason, actor, time.time())
        self._note(route, f"kill: {reason}", actor)
        return self.switches[route]

    async def lift(self, route: str | None, *, reason: str, actor: str) -> Switch:
        """As the protocol says."""
        if route not in self.switches:
            raise IllegalMove("nothing is off")
        del self.switches[route]
        self._note(route, f"lift: {reason}", actor)
        return Switch(route, False, reason, actor, time.time())

    async def changes(self) -> AsyncGenerator[None, None]:
        """As the protocol says."""
        event = asyncio.Event()
        self.listeners.add(event)
        try:
            yield
            while True:
                await event.wait()
                event.clear()
                yield
        finally:
            self.listeners.discard(event)

    async def bundle(self, id: str) -> AuditBundle:  # noqa: A002 - as the protocol calls it
        """As the protocol says."""
        if id not in self.bundles:
            raise NotFound(f"no bundle {id[:80]} is in memory")
        return self.bundles[id]

    def _states(self, route: str) -> list[GateState]:
        states = self.store.states(route)
        if not states:
            raise NotFound(f"there is no route {route}")
        return states

    def _rules(self, state: GateState) -> Rules:
        return rules_for(self.store.revision(state.route, state.revision).effective())

    def _info(self, state: GateState) -> RevisionInfo:
        return RevisionInfo(
            state.revision,
            state.phase,
            etag_of(state),
            state.created,
            state.entered,
            share=state.share(self._rules(state)),
        )

    def _last(self) -> int:
        entries = self.store.log(limit=100_000)
        return entries[-1].seq if entries else 0

    def _with_others(self, moved: Move) -> list[Move]:
        others = {state.phase: state for state in self.store.states(moved.before.route)}
        if moved.after.phase == "active":
            return hand_over(moved, others.get("active"), time.time())
        if moved.before.phase == "active" and moved.before.replaced is not None:
            return hand_back(moved, self.store.state(moved.before.route, moved.before.replaced), time.time())
        return [moved]

    def _write(self, moves: Iterable[Move], actor: str) -> None:
        self.store.commit([Transition(move, actor, time.time()) for move in moves])
        self.tell()

    def _note(self, route: str | None, reason: str, actor: str) -> None:
        """A line in the log of every active revision that this is about."""
        active = [state for state in self.store.states(route) if state.phase == "active"]
        self._write([Move(state, state, reason, None) for state in active], actor)

    def _read(self, files: Mapping[str, str]) -> tuple[PolicySet | None, list[str], list[str]]:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            policies, findings = PolicySet.read(Path(folder), self.catalogue)
        found = (
            [str(problem).removeprefix(f"{folder}/") for problem in kind]
            for kind in (findings.errors, findings.warnings)
        )
        errors, warnings = found
        return policies, errors, warnings

    def _route(self, name: str) -> RouteStatus:
        states, seen = self.store.states(name), self.numbers.get(name, Numbers())
        active = next((state for state in states if state.phase == "active"), None)
        coming = next((s for s in reversed(states) if s.phase in ("validated", "shadow", "canary", "paused")), None)
        content = None if active is None else self.store.revision(name, active.revision)
        return RouteStatus(
            route=name,
            revision=None if active is None else active.revision,
            etag=None if active is None else etag_of(active),
            since=None if active is None else active.entered,
            drafters=[] if content is None else list(content.drafters),
            switches=[self.switches[name]] if name in self.switches else [],
            hold_out=0.01,
            requests=seen.requests,
            speedup=seen.speedup,
            acceptance=seen.acceptance,
            k=seen.k,
            ttft=seen.ttft,
            inter_token=seen.inter_token,
            audits=seen.audits,
            candidate=None if coming is None else self._candidate(coming),
        )

    def _candidate(self, state: GateState) -> Candidate:
        evidence, rules = self.store.evidence(state.route, state.revision), self._rules(state)
        found = assess(evidence, rules)
        audited = evidence.mismatches.clean + evidence.mismatches.hard
        return Candidate(
            revision=state.revision,
            phase=state.phase,
            etag=etag_of(state),
            entered=state.entered,
            step=state.step,
            share=state.share(rules),
            shares=list(rules.canary),
            samples=[
                Count("audits", audited, rules.mismatch.clean_needed),
                Count("shadow pairs", evidence.shadow.speed.n, rules.min_samples),
                Count("live pairs", evidence.live.speed.n, rules.min_samples),
            ],
            speed=_speed(found),
            figures=[Figure(finding, _margin(finding.metric, rules)) for finding in found.findings],
            lacking=found.lacking_for_active(rules),
            paused_from=state.paused_from,
        )


def _speed(found: Assessment) -> Gain | None:
    for place in ("live", "shadow"):
        for finding in found.of(SPEED, place):
            if finding.estimate is not None:
                return Gain(finding.estimate, finding.low, finding.high, finding.candidate)
    return None


def _margin(metric: str, rules: Rules) -> float | None:
    margins = {**rules.tail_margins, **rules.rate_margins, "cost": rules.cost_margin, SPEED: rules.min_gain}
    return margins.get(metric)


def _line(entry: AuditEntry) -> LogEntry:
    return LogEntry(
        seq=entry.seq,
        time=entry.time,
        actor=entry.actor,
        route=entry.route,
        revision=entry.revision,
        before=entry.before,
        after=entry.after.phase,
        reason=entry.reason,
        findings=[] if entry.findings is None else list(entry.findings.findings),
        step=entry.after.step,
        previous=entry.previous,
    )


def to(state: GateState, phase: str, **fields: object) -> Move:
    """A move to another phase, as the gate would make it."""
    return Move(state, replace(state, phase=phase, **fields), f"evidence: to {phase}", None)
