"""What the admin API asks of whatever runs the gate, and the values that it answers with.

Gains are ratios less 1 (0.25: a quarter faster), rates are differences, margins and shares lie in [0, 1], durations are
in seconds, times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from msgspec import Struct

from specproxy.bundle import AuditBundle
from specproxy.gate.assessment import Finding
from specproxy.gate.orders import Order
from specproxy.gate.states import GateState, Phase
from specproxy.policy.explain import Explanation
from specproxy.policy.plan import Plan, RouteChange
from specproxy.server.admin.drafter_operator import DrafterOperator


class Gain(Struct, frozen=True):
    """A measured speed gain with its interval at 95 %, from ``n`` pairs. An end is ``None`` where it is unbounded."""

    estimate: float
    low: float | None
    high: float | None
    n: int


class Figure(Struct, frozen=True):
    """A finding beside the margin that it is judged by: what an operator judges a change by. ``margin``: how much worse
    the candidate may be; of ``speed``, the gain that it has to exceed; ``None`` where there is nothing to be missed."""

    finding: Finding
    margin: float | None


class Count(Struct, frozen=True):
    """Samples of one kind on the way to a decision. ``what``: audits, shadow pairs, live pairs, …"""

    what: str
    have: int
    need: int


class Candidate(Struct, frozen=True):
    """A revision on its way, or paused. ``share``: of conversations that it serves now; ``shares``: the canary's
    steps, ``step`` an index into them. ``speed``: where it is measured best, live before shadow. ``lacking``: what is
    not proven yet before it may be active, in words. ``reason``: of the last move."""

    revision: str
    phase: Phase
    etag: str
    entered: float
    step: int
    share: float
    shares: list[float]
    samples: list[Count]
    speed: Gain | None
    figures: list[Figure]
    lacking: list[str]
    reason: str = ""
    paused_from: Phase | None = None


class Depth(Struct, frozen=True):
    """Drafted and accepted tokens at one depth of the draft, the first being 0."""

    position: int
    drafted: int
    accepted: int


class KPoint(Struct, frozen=True):
    """Mean number of drafted tokens of a row in a step, over the short time that ends at ``time``."""

    time: float
    k: float


class Percentiles(Struct, frozen=True):
    """Of ``n`` durations in seconds."""

    p50: float
    p95: float
    p99: float
    n: int


class Audits(Struct, frozen=True):
    """Audited answers since the server started. ``done`` are those with a verdict: identical, explained or hard."""

    done: int = 0
    identical: int = 0
    explained: int = 0
    hard: int = 0
    dropped: int = 0
    failed: int = 0
    waiting: int = 0


class Switch(Struct, frozen=True):
    """Speculation switched off by hand or by a hard mismatch. ``route`` ``None``: on all of them. ``drafter``: of one
    only, where it is set. ``etag`` changes with each switch."""

    route: str | None
    killed: bool
    reason: str
    actor: str
    time: float
    drafter: str | None = None


class BundleInfo(Struct, frozen=True):
    """A hard mismatch whose bundle is still in memory. ``id``: what ``bundle`` takes."""

    id: str
    time: float
    route: str
    revision: str
    drafters: tuple[str, ...]
    position: int
    note: str = ""


class RouteStatus(Struct, frozen=True):
    """A route as it serves now.

    ``revision``: the active one (64 hex digits), ``None`` where none is; ``drafters``: those it may use. ``switches``:
    what is off. ``speedup``: now, against the permanent plain hold-out, whose share of conversations is ``hold_out``.
    ``ttft`` and ``inter_token``: of answers a short time back.
    """

    route: str
    revision: str | None
    etag: str | None
    since: float | None
    drafters: list[str]
    switches: list[Switch]
    hold_out: float
    requests: int
    speedup: Gain | None
    acceptance: list[Depth]
    k: list[KPoint]
    ttft: Percentiles | None
    inter_token: Percentiles | None
    audits: Audits
    candidate: Candidate | None


class Status(Struct, frozen=True):
    """Everything that serves. ``killed``: the global switch, where it is off. ``policies``: hash of the set on disk
    that was read last. ``engine``: its state, as ``/ready`` says it. ``warnings``: what an operator should look at, in
    words, such as a policy set that was refused or a hard mismatch. ``log``: the last entry's number."""

    time: float
    version: str
    engine: str
    exactness: str | None
    policies: str
    killed: Switch | None
    routes: list[RouteStatus]
    mismatches: list[BundleInfo]
    warnings: list[str]
    log: int


class RevisionInfo(Struct, frozen=True):
    """A revision of a route: 64 hex digits, where it stands, and the ETag of that (see ``etag_of``)."""

    revision: str
    phase: Phase
    etag: str
    created: float
    entered: float
    share: float = 0.0


class Revisions(Struct, frozen=True):
    """The revisions of a route, oldest first."""

    route: str
    revisions: list[RevisionInfo]


class LogEntry(Struct, frozen=True):
    """One line of the audit log. ``route`` ``None``: the global switch. ``before`` and ``after``: phases; the same
    where the entry is no move, such as a kill. ``previous``: hash of the entry before."""

    seq: int
    time: float
    actor: str
    route: str | None
    revision: str | None
    before: str | None
    after: str | None
    reason: str
    findings: list[Finding]
    step: int = 0
    previous: str = ""


class Log(Struct, frozen=True):
    """Entries of the audit log in order. ``last``: number of the newest one there is."""

    entries: list[LogEntry]
    last: int


class Validation(Struct, frozen=True):
    """Whether policy files would be a valid set here. ``problems``: ``file:line: key: what, expected, what to do``.
    ``policies``: the set's hash; ``routes``: what would be candidates; both only of a valid set."""

    valid: bool
    problems: list[str]
    warnings: list[str]
    policies: str | None
    routes: list[RouteChange]


class Operator(Protocol):
    """Runs the gate. Nothing is changed where a call raises; all changes are in the audit log when it returns.

    Errors: NotFound (no such route), UnknownRevision, StaleWrite (the ETag is not of the present state), IllegalMove,
    InvalidRequest. ``actor`` is the id of the credential that was presented.
    """

    @property
    def drafters(self) -> DrafterOperator:
        """Who loads and unloads drafters."""

    async def status(self) -> Status:
        """What serves and what is on its way."""

    async def revisions(self, route: str) -> Revisions:
        """The revisions of ``route``. Raises NotFound."""

    async def log(self, after: int, limit: int) -> Log:
        """At most ``limit`` entries with a number above ``after``, oldest first."""

    async def validate(self, files: Mapping[str, str]) -> Validation:
        """Check policy files (name → text) as they would be checked on disk; nothing is kept."""

    async def explain(self, request: Mapping[str, Any]) -> Explanation:
        """What the set in force decides about a request: a body, or an envelope. Raises InvalidRequest."""

    async def plan(self, files: Mapping[str, str]) -> Plan:
        """Which of the last requests these files would treat otherwise. Raises InvalidRequest where they are no valid
        set, with every problem in its message."""

    async def order(
        self, route: str, action: Order, revision: str, *, reason: str, actor: str, etag: str, force: bool
    ) -> RevisionInfo:
        """Move ``revision`` (all 64 digits) of ``route`` if its state still has ``etag``; its state afterwards.

        Of ``rollback``, what served before serves again at the next request. ``force``: promote without the proofs that
        are still open.
        """

    async def kill(self, route: str | None, *, reason: str, actor: str) -> Switch:
        """Speculation off at the next step, on ``route`` or on all. Killed twice, the last reason stays."""

    async def lift(self, route: str | None, *, reason: str, actor: str) -> Switch:
        """Undo ``kill``, and whatever else switched this route off. Raises IllegalMove where nothing is off."""

    def changes(self) -> AsyncGenerator[None, None]:
        """Yields once at the start and again whenever a state, a switch, the log or a warning has changed since;
        changes in between are one. It never ends by itself; ``aclose`` lets go of everything."""

    async def bundle(self, id: str) -> AuditBundle:  # noqa: A002 - the API's word for it
        """The reproducible bundle of a hard mismatch. Raises NotFound where it is not, or no longer, in memory."""


def etag_of(state: GateState) -> str:
    """The ETag of a revision's state, quotes included, as it stands in ``If-Match``."""
    return f'"{state.revision[:12]}.{state.version}"'
