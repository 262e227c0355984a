"""How ``specproxy policy`` shows the gate's file and a plan: tables for people."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specproxy.gate.assessment import Assessment
from specproxy.gate.store import AuditEntry, Revision
from specproxy.policy.plan import Plan, Ruling
from specproxy.policy.revision import short

if TYPE_CHECKING:
    from specproxy.cli.policy_gate import Difference, Standing

SHOWN_CHANGES = 50
"""Requests that a plan shows one by one; --json has all."""


def print_log(console: Console, entries: Sequence[AuditEntry]) -> None:
    """A row an entry; times in UTC."""
    table = Table("#", "time (UTC)", "who", "route", "revision", "move", "reason")
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.time))
        row = (str(entry.seq), when, entry.actor, entry.route, short(entry.revision), _move(entry), entry.reason)
        table.add_row(*map(escape, row))
    console.print(table)


def _move(entry: AuditEntry) -> str:
    step = f" step {entry.after.step + 1}" if entry.after.phase == "canary" else ""
    return f"{entry.before or 'new'} → {entry.after.phase}{step}"


def print_status(console: Console, found: Sequence[Standing], now: float) -> None:
    """A row a revision, and of each that is on its way what is known."""
    table = Table("route", "revision", "phase", "serves", "for", "findings")
    for item in found:
        state = item.state
        row = (state.route, short(state.revision), state.phase, f"{item.share:.0%}", _age(now - state.entered))
        table.add_row(*map(escape, (*row, _findings(item.assessment))))
    console.print(table)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _findings(assessment: Assessment) -> str:
    """What is proven or open; metrics that nothing was seen of are left out."""
    seen = [finding for finding in assessment.findings if finding.verdict != "absent"]
    return "\n".join(f"{finding.verdict}: {finding}" for finding in seen) or "nothing seen yet"


def print_diff(console: Console, old: Revision, new: Revision, found: Sequence[Difference]) -> None:
    """A row a setting."""
    table = Table("key", f"old {short(old.revision)}", f"new {short(new.revision)}", title=old.route)
    for item in found:
        table.add_row(*map(escape, (item.key, _value(item.old), _value(item.new))))
    console.print(table if found else "both say the same")


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def print_plan(console: Console, plan: Plan) -> None:
    """Routes that change, where requests would move, and the requests one by one."""
    routes = Table("route", "is", "before", "after", title="routes", title_justify="left")
    for change in plan.routes:
        revisions = (short(item) if item else "-" for item in (change.before, change.after))
        routes.add_row(*map(escape, (change.route, change.kind, *revisions)))
    if plan.routes:
        console.print(routes)
    for flow in plan.flows:
        console.print(f"{flow.requests} requests would go from route {flow.before} to {flow.after}", highlight=False)
    table = Table("request", "changes", "before", "after", title="requests", title_justify="left")
    for item in plan.changes[:SHOWN_CHANGES]:
        before, after = (_ruling(side, item.fields) for side in (item.before, item.after))
        table.add_row(*map(escape, (str(item.request), ", ".join(item.fields), before, after)))
    if plan.changes:
        console.print(table)
    if len(plan.changes) > SHOWN_CHANGES:
        console.print(f"and {len(plan.changes) - SHOWN_CHANGES} more; --json shows all", highlight=False)
    touched = ", ".join(plan.touched()) or "none"
    counts = f"{len(plan.changes)} of {plan.requests} requests would be treated otherwise"
    console.print(f"{counts}; routes touched: {escape(touched)}", highlight=False, soft_wrap=True)


def _ruling(ruling: Ruling, fields: Sequence[str]) -> str:
    """The fields that differ; the route first, whether it does or not."""
    others = [f"{name} {getattr(ruling, name) or 'no'}" for name in fields if name != "route"]
    return ", ".join([ruling.route, *others])
