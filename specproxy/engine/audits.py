"""Audits between the engine's steps: which goes on, when, and for how long.

Nothing here touches a sequence, a page or a step. One ``step`` runs at most one chunk of one audit, so that whoever
comes in the meantime waits for no more than that. What a route's audits may take is a share of the wall time, one where
users wait for the engine, another where nobody does; the audits of all routes together take no more than the largest
of their shares.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from specproxy.audit.job import AuditJob, AuditTarget
from specproxy.bundle import AuditBundle, AuditResult, Tolerance, without_verdict
from specproxy.engine.budget import Budget
from specproxy.engine.runner import Runner
from specproxy.engine.tolerance import AUDIT_ROWS, Measurement
from specproxy.errors import InvalidRequest
from specproxy.wire.frames import Audit

MAX_WAITING = 256
"""Audits that wait or run; beyond that the oldest that did not begin is dropped."""

QUIET_S = 0.05
"""Seconds that nobody must have waited for the engine before it counts as idle: whoever asks again as soon as an answer
is there would otherwise meet a chunk each time."""

PATIENCE_S = 2.0
"""So long an audit waits for a moment in which no user does, before it takes its share of the time in which some do."""


@dataclass(eq=False)
class _Waiting:
    """An audit that waits since ``since``, or runs."""

    bundle: AuditBundle
    since: float
    job: AuditJob | None = None
    seconds: float = 0.0


@dataclass
class _Shares:
    """Budgets by whether users wait: a route's, or those of all routes together."""

    idle: Budget
    busy: Budget

    @classmethod
    def none(cls, clock: Callable[[], float]) -> _Shares:
        return cls(Budget(0.0, clock), Budget(0.0, clock))

    def of(self, busy: bool) -> Budget:
        return self.busy if busy else self.idle


@dataclass
class Audits:
    """All audits of an engine. ``why_not``: where it can run none, why. ``tolerance``: measured by ``measure`` before
    the first audit, piece by piece as audits run, where it is not known."""

    target: AuditTarget
    runner: Runner
    clock: Callable[[], float]
    measure: Callable[[], Measurement]
    tolerance: Tolerance | None = None
    why_not: str = ""
    limit: int = MAX_WAITING
    patience: float = PATIENCE_S
    _queue: deque[_Waiting] = field(default_factory=deque)
    _routes: dict[str, _Shares] = field(default_factory=dict)
    _ended: list[AuditResult] = field(default_factory=list)
    _measurement: Measurement | None = None
    _busy_until: float = -math.inf
    _together: _Shares = field(init=False)

    def __post_init__(self) -> None:
        self._together = _Shares.none(self.clock)

    def add(self, frame: Audit) -> None:
        """Queue an audit."""
        bundle = frame.bundle
        if self.why_not:
            self._ended.append(without_verdict(bundle, "failed", self.why_not))
            return
        route = self._routes.setdefault(bundle.route, _Shares.none(self.clock))
        route.idle.share, route.busy.share = frame.idle_share, frame.busy_share
        if len(self._queue) >= self.limit:
            oldest = next((item for item in self._queue if item.job is None), self._queue[0])
            self._queue.remove(oldest)
            self._ended.append(without_verdict(oldest.bundle, "dropped", "too many audits wait"))
        self._queue.append(_Waiting(bundle, self.clock()))
        waiting = [self._routes[route] for route in {item.bundle.route for item in self._queue}]
        self._together.idle.share = max(route.idle.share for route in waiting)
        self._together.busy.share = max(route.busy.share for route in waiting)

    @property
    def waiting(self) -> int:
        """Audits that wait or run."""
        return len(self._queue)

    def due_in(self, busy: bool) -> float:
        """Seconds until ``step`` has something to do. ``busy``: a user waits for the engine."""
        if self._ended:
            return 0.0
        now = self.clock()
        first: dict[str, _Waiting] = {}
        for waiting in self._queue:
            first.setdefault(waiting.bundle.route, waiting)
        quiet_in = math.inf if busy else max(0.0, self._busy_until - now)
        return min((self._due_in(waiting, now, quiet_in) for waiting in first.values()), default=math.inf)

    def step(self, busy: bool) -> list[AuditResult]:
        """At most one chunk of one audit; results that there are now. ``busy``: a user waits for the engine."""
        now = self.clock()
        if busy:
            self._busy_until = now + QUIET_S
        busy = now < self._busy_until
        waiting = self._next(busy, now)
        if waiting is not None:
            began = self.clock()
            result = self._advance(waiting)
            seconds = self.clock() - began
            waiting.seconds += seconds
            for shares in (self._routes[waiting.bundle.route], self._together):
                shares.of(busy).spend(seconds)
            if result is not None:
                self._queue.remove(waiting)
                self._ended.append(result)
        ended, self._ended = self._ended, []
        return ended

    def _due_in(self, waiting: _Waiting, now: float, quiet_in: float) -> float:
        """Seconds until the first of its route may go on: in ``quiet_in`` seconds nobody waits any more."""
        idle = max(quiet_in, self._idle_due_in(waiting))
        return idle if quiet_in == 0.0 else min(idle, self._busy_due_in(waiting, now))

    def _idle_due_in(self, waiting: _Waiting) -> float:
        """The same where nobody waits."""
        return max(self._routes[waiting.bundle.route].idle.due_in, self._together.idle.due_in)

    def _busy_due_in(self, waiting: _Waiting, now: float) -> float:
        """The same while users wait, who may always do so: also for the measurement that comes before the first
        audit."""
        shares = max(self._routes[waiting.bundle.route].busy.due_in, self._together.busy.due_in)
        return max(waiting.since + self.patience - now, shares)

    def _next(self, busy: bool, now: float) -> _Waiting | None:
        """The first in the queue whose route may go on: each route's audits run one after another."""
        spent: set[str] = set()
        for waiting in self._queue:
            route = waiting.bundle.route
            if route in spent:
                continue
            if (self._busy_due_in(waiting, now) if busy else self._idle_due_in(waiting)) <= 0.0:
                return waiting
            spent.add(route)
        return None

    def _advance(self, waiting: _Waiting) -> AuditResult | None:
        """One chunk of it; its result, where it is done. What goes wrong ends this audit and nothing else."""
        if self.tolerance is None:
            self._measure_on()
            return None
        self.runner.threads.enter(AUDIT_ROWS)
        try:
            if waiting.job is None:
                waiting.job = AuditJob(self.target, waiting.bundle, self.tolerance)
            began = self.clock()
            done = waiting.job.step()
        except InvalidRequest as error:
            return without_verdict(waiting.bundle, "failed", error.message)
        except RuntimeError as error:  # torch's kind, out of memory included
            waiting.job = None
            if self.runner.model.spec.device.startswith("cuda"):
                torch.cuda.empty_cache()
            return without_verdict(waiting.bundle, "failed", f"the stock model failed: {error}")
        return waiting.job.result(waiting.seconds + self.clock() - began) if done else None

    def _measure_on(self) -> None:
        """The next piece of the measurement that comes before the first audit."""
        if self._measurement is None:
            self._measurement = self.measure()
        try:
            next(self._measurement)
        except StopIteration as end:
            self.tolerance, self._measurement = end.value, None
