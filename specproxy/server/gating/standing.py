"""The gate's state as operators read it: routes, candidates and their figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from specproxy import __version__
from specproxy.gate.assessment import COST, SPEED, Assessment, assess
from specproxy.gate.kills import Kill
from specproxy.gate.rules import Rules
from specproxy.gate.statistics import Mean
from specproxy.gate.store import AuditEntry
from specproxy.server.admin.operator import (
    Audits,
    BundleInfo,
    Candidate,
    Count,
    Depth,
    Figure,
    Gain,
    KPoint,
    LogEntry,
    Percentiles,
    RouteStatus,
    Status,
    Switch,
    etag_of,
)
from specproxy.server.gating.audits import Counts
from specproxy.server.gating.book import JUDGED, Tracked
from specproxy.server.gating.contents import route_of
from specproxy.server.gating.gate import Gate
from specproxy.server.gating.traffic import RouteTraffic


def server_status(gate: Gate) -> Status:
    """Everything that serves and that is on its way."""
    book, hello = gate.book, gate.backend.hello
    names = dict.fromkeys(
        [route.name for route in book.serving.routes] + list(book.change.members if book.change else ())
    )
    everywhere = next((kill for kill in book.kills if kill.route is None), None)
    return Status(
        time=book.clock(),
        version=__version__,
        engine=gate.backend.state,
        exactness=None if hello is None else hello.numerics.exactness,
        policies=gate.policies.current.hash,
        killed=None if everywhere is None else switch_of(everywhere),
        routes=[route_status(gate, name) for name in names],
        mismatches=bundle_infos(gate),
        warnings=_warnings(gate),
        log=book.log_size,
    )


def route_status(gate: Gate, name: str) -> RouteStatus:
    """A route as it serves now, or as it would once it is there."""
    book = gate.book
    active, found = book.active.get(name), route_of(book.serving, name)
    member = None if book.change is None else book.change.members.get(name)
    traffic = gate.traffic.routes.get(name, RouteTraffic())
    counts = gate.audits.counts.get(name, Counts())
    return RouteStatus(
        route=name,
        revision=None if active is None else active.revision,
        etag=None if active is None else etag_of(active.state),
        since=None if active is None else active.state.entered,
        drafters=[] if found is None else list(found.decision.drafters),
        switches=[switch_of(kill) for kill in book.kills if kill.route == name],
        hold_out=0.0 if found is None else found.effective.settings.hold_out,
        requests=traffic.requests,
        speedup=_gain(gate.samples.speedup.get(name, ("", Mean()))[1]),
        acceptance=[Depth(at, drafted, accepted) for at, (drafted, accepted) in enumerate(traffic.depths())],
        k=[KPoint(end, drafted / steps) for end, drafted, steps in traffic.k],
        ttft=_percentiles(traffic.ttft),
        inter_token=_percentiles(traffic.gaps),
        audits=Audits(
            counts.done,
            counts.identical,
            counts.explained,
            counts.hard,
            counts.dropped,
            counts.failed,
            gate.audits.waiting(name),
        ),
        candidate=None if member is None or not member.pending else candidate_of(gate, member),
    )


def candidate_of(gate: Gate, member: Tracked) -> Candidate:
    """A revision on its way, with what it has shown and what it lacks."""
    state, evidence, rules = member.state, member.evidence, member.rules
    found = member.assessment or assess(evidence, rules)
    change = gate.book.change
    audited = evidence.mismatches.clean + evidence.mismatches.hard
    return Candidate(
        revision=member.revision,
        phase=state.phase,
        etag=etag_of(state),
        entered=state.entered,
        step=state.step,
        share=0.0 if change is None else change.share_of(member.route),
        shares=list(rules.canary),
        samples=[
            Count("audits", audited, rules.mismatch.clean_needed),
            Count("shadow pairs", max(evidence.shadow.speed.n, evidence.shadow.disturbed), rules.min_samples),
            Count("live pairs", evidence.live.speed.n, rules.min_samples),
        ],
        speed=_speed(found),
        figures=[Figure(finding, margin_of(finding.metric, rules)) for finding in found.findings],
        lacking=found.lacking_for_active(rules),
        reason=member.reason,
        paused_from=state.paused_from,
    )


def margin_of(metric: str, rules: Rules) -> float | None:
    """How much worse the candidate may be; of speed, the gain that it has to exceed."""
    margins = {
        **rules.tail_margins,
        **rules.rate_margins,
        COST: rules.cost_margin,
        SPEED: math.expm1(rules.least_log_gain),
    }
    return margins.get(metric)


def switch_of(kill: Kill, *, killed: bool = True) -> Switch:
    """A kill as operators see it."""
    return Switch(kill.route, killed, kill.reason, kill.actor, kill.time, kill.drafter)


def bundle_infos(gate: Gate) -> list[BundleInfo]:
    """Hard mismatches that are in memory, newest last."""
    return [
        BundleInfo(
            name,
            kept.time,
            kept.result.route,
            kept.result.revision,
            kept.audited.drafted,
            kept.result.findings[0].position if kept.result.findings else len(kept.audited.bundle.prompt),
            f"request {kept.audited.request_id}" if kept.audited.served else "an answer in shadow",
        )
        for name, kept in gate.audits.ring.items()
    ]


def log_entry(entry: AuditEntry) -> LogEntry:
    """A line of the audit log."""
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


def _warnings(gate: Gate) -> list[str]:
    found = [] if gate.policies.error is None else [f"the policy files were refused: {gate.policies.error}"]
    found += list(gate.book.serving.warnings)
    if gate.book.change is not None:
        judged = [m for m in gate.book.change.members.values() if m.state.phase in JUDGED]
        found += [f"{m.route} {m.revision[:12]} was {m.state.phase}: {m.reason}" for m in judged]
    for name, (_, mean) in gate.samples.speedup.items():
        if (gain := _gain(mean)) is not None and gain.high is not None and gain.high < 0:
            found.append(
                f"route {name} is slower than plain decoding now: {gain.estimate:+.1%} against its hold-out, surely "
                f"not above {gain.high:+.1%}; roll it back, or edit its policy"
            )
    if gate.audits.ring:
        found.append(f"{len(gate.audits.ring)} answers were not the target's: see the hard mismatches")
    if not gate.book.ledger.kept:
        found.append("the gate's state is in memory only: another server has state.path")
    return found


def _speed(found: Assessment) -> Gain | None:
    """Where it is measured best."""
    for finding in (*found.of(SPEED, "live"), *found.of(SPEED, "shadow")):
        if finding.estimate is not None:
            return Gain(finding.estimate, finding.low, finding.high, finding.candidate)
    return None


def _gain(mean: Mean) -> Gain | None:
    if mean.n < 2:
        return None
    low, high = (math.expm1(end) if math.isfinite(end) else None for end in mean.interval(0.05))
    return Gain(math.expm1(mean.mean), low, high, mean.n)


def _percentiles(values: Sequence[float]) -> Percentiles | None:
    if not values:
        return None
    ordered = sorted(values)
    p50, p95, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95, 0.99))
    return Percentiles(p50, p95, p99, len(ordered))
