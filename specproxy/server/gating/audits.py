"""Audits as the server sees them: which answers are computed again, and what their results lead to."""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog
from msgspec import Struct

from specproxy.bundle import AuditBundle, AuditResult
from specproxy.gate.rules import TIES
from specproxy.policy.schema import Audit as AuditSettings
from specproxy.server.gating.book import Book
from specproxy.server.gating.contents import route_of
from specproxy.server.gating.decider import CANDIDATE, HOLD_OUT
from specproxy.server.metrics import Metrics
from specproxy.wire.frames import Audit

MAX_PENDING = 512
"""Bundles whose result is awaited; the engine itself drops beyond half of that."""

RING = 32
"""Bundles of hard mismatches that are kept."""

MAX_SEEN = 8192
"""Answers of a revision that are known to have been counted."""


class Audited(Struct, frozen=True):
    """An answer that was audited. ``request_id``: the client's; ``drafted``: the drafters that did; ``served``: to a
    user, rather than computed for comparison."""

    bundle: AuditBundle
    request_id: str
    arm: str
    drafted: tuple[str, ...]
    served: bool


@dataclass
class Counts:
    """Results of a route since the server started."""

    identical: int = 0
    explained: int = 0
    hard: int = 0
    dropped: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        """Those with a verdict."""
        return self.identical + self.explained + self.hard


@dataclass(frozen=True)
class Kept:
    """A hard mismatch. ``time``: Unix seconds."""

    time: float
    audited: Audited
    result: AuditResult


@dataclass
class _Seen:
    """Answers that were counted, so that a repeated one is not taken for more evidence."""

    order: deque[bytes] = field(default_factory=lambda: deque(maxlen=MAX_SEEN))
    known: set[bytes] = field(default_factory=set)

    def first(self, key: bytes) -> bool:
        if key in self.known:
            return False
        if len(self.order) == MAX_SEEN:
            self.known.discard(self.order[0])
        self.order.append(key)
        self.known.add(key)
        return True


class Audits:
    """Sends answers to be audited and books what comes back.

    ``send``: puts a frame on its way, or says no; ``on_hard``: told of each hard mismatch of a served answer.
    """

    def __init__(
        self,
        book: Book,
        metrics: Metrics,
        send: Callable[[Audit], bool],
        on_hard: Callable[[Audited, AuditResult], None],
        rng: random.Random,
    ) -> None:
        self._book = book
        self._metrics = metrics
        self._send = send
        self._on_hard = on_hard
        self._rng = rng
        self._pending: OrderedDict[tuple[str, int], Audited] = OrderedDict()
        self._seen: dict[str, _Seen] = {}
        self.counts: dict[str, Counts] = {}
        self.ring: OrderedDict[str, Kept] = OrderedDict()

    def waiting(self, route: str) -> int:
        """Answers of the route whose result is awaited."""
        return sum(item.bundle.route == route for item in self._pending.values())

    def offer(self, item: Audited) -> None:
        """An answer is complete: audit it, as often as its route says."""
        settings = self._settings(item.bundle.route)
        if not item.bundle.output or self._rng.random() >= settings.fraction or settings.budget <= 0:
            return
        if self._send(Audit(item.bundle, idle_share=1.0, busy_share=settings.budget)):
            self._pending[item.bundle.request_id, item.bundle.choice] = item
            if len(self._pending) > MAX_PENDING:
                self._pending.popitem(last=False)

    def take(self, result: AuditResult) -> None:
        """A result has come."""
        item = self._pending.pop((result.request_id, result.choice), None)
        counts = self.counts.setdefault(result.route, Counts())
        setattr(counts, result.verdict, getattr(counts, result.verdict) + 1)
        self._metrics.audits.labels(result.route, result.verdict).inc()
        if item is None or result.verdict in ("dropped", "failed"):
            if result.note:
                structlog.get_logger().debug("audit without a verdict", route=result.route, note=result.note)
            return
        if result.verdict == "hard":
            self._alarm(item, result)
        self._count(item, result)
        self._book.changed()

    def lost(self) -> None:
        """The engine took its audits with it."""
        for item in self._pending.values():
            self.counts.setdefault(item.bundle.route, Counts()).dropped += 1
            self._metrics.audits.labels(item.bundle.route, "dropped").inc()
        self._pending.clear()

    def _settings(self, route: str) -> AuditSettings:
        found = route_of(self._book.serving, route)
        return AuditSettings() if found is None else found.effective.settings.audit

    def _count(self, item: Audited, result: AuditResult) -> None:
        """Evidence: of the revision that answered, each answer once."""
        bundle = item.bundle
        tracked = self._book.find(bundle.route, bundle.revision)
        if tracked is None or not self._seen_of(bundle.revision).first(_key(bundle)):
            return
        tracked.dirty = True
        hard = result.verdict == "hard"
        if item.arm != HOLD_OUT:
            tracked.evidence.mismatches.add(tracked.rules.mismatch, hard=hard, explained=result.verdict == "explained")
        self._count_ties(item, result)

    def _seen_of(self, revision: str) -> _Seen:
        """What was counted of a revision; of those that are followed no more, nothing is kept."""
        if revision not in self._seen:
            followed = {tracked.revision for tracked in self._book.tracked()}
            self._seen = {name: seen for name, seen in self._seen.items() if name in followed}
            self._seen[revision] = _Seen()
        return self._seen[revision]

    def _count_ties(self, item: Audited, result: AuditResult) -> None:
        """How often near-ties fall the other way, against plain decoding."""
        change, good = self._book.change, result.verdict == "identical"
        if change is None or item.arm not in (CANDIDATE, HOLD_OUT):
            return
        for member in change.group_of(item.bundle.route):
            if member.route == item.bundle.route and (rate := member.evidence.live.rates.get(TIES)) is not None:
                rate.add(candidate=item.arm == CANDIDATE, good=good)

    def _alarm(self, item: Audited, result: AuditResult) -> None:
        """Somebody got, or would have got, tokens that are not the target's."""
        bundle = item.bundle
        self.ring[bundle.request_id] = Kept(self._book.clock(), item, result)
        while len(self.ring) > RING:
            self.ring.popitem(last=False)
        self._metrics.hard_mismatches.labels(bundle.route, ",".join(item.drafted) or "off").inc()
        structlog.get_logger().error(
            "hard mismatch: an answer is not the target's",
            request_id=item.request_id,
            bundle=bundle.request_id,
            choice=bundle.choice,
            route=bundle.route,
            revision=bundle.revision[:12],
            arm=item.arm,
            drafters=list(item.drafted),
            served=item.served,
            findings=msgspec.to_builtins(result.findings),
        )
        if item.served:
            self._on_hard(item, result)


def _key(bundle: AuditBundle) -> bytes:
    """What tells one answer from another."""
    params = msgspec.msgpack.encode((bundle.prompt, bundle.output, bundle.params))
    return hashlib.blake2b(params, digest_size=16).digest()


def drafters_of(names: Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    """Who is to blame: those who drafted, or all who might have, where that is not known."""
    return tuple(names) or tuple(allowed)
