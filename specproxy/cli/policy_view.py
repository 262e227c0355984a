"""How ``specproxy policy`` shows what it found: tables for people, one JSON value for machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specproxy.config.yaml_reader import Problem
from specproxy.policy.explain import Explanation, shown_k
from specproxy.policy.policy import PolicySet
from specproxy.policy.reading import Findings
from specproxy.policy.revision import short
from specproxy.policy.testing import Outcome, differences
from specproxy.vocabulary import Decision

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def print_findings(console: Console, policies: PolicySet | None, findings: Findings, *, as_json: bool) -> None:
    """Every finding on a line of its own that editors can jump to, then the routes of a set without errors."""
    levels = (("error", findings.errors), ("warning", findings.warnings), ("note", findings.notes))
    if as_json:
        content: dict[str, object] = {f"{level}s": [_finding(item) for item in items] for level, items in levels}
        content["set"] = policies.hash if policies else None
        content["routes"] = [msgspec.to_builtins(route.decision) for route in policies.routes] if policies else []
        print(msgspec.json.encode(content).decode())
        return
    for level, items in levels:
        for item in items:
            console.print(f"[{_STYLES[level]}]{level}[/]: {escape(str(item))}", highlight=False, soft_wrap=True)
    if policies is not None:
        table = Table("route", "from", "drafters", "k", "revision", title=f"set {short(policies.hash)}")
        for route in policies.routes:
            where = f"{Path(route.source.document.file).name}:{route.source.line}"
            decision = route.decision
            drafters = "auto" if decision.auto else _drafters(decision)
            table.add_row(*map(escape, (route.name, where, drafters, shown_k(decision), short(decision.revision))))
        console.print(table)
        loaded = ", ".join(policies.catalogue.drafter_names) or "none"
        console.print(f"drafters declared, in the order of auto: {escape(loaded)}", highlight=False)
    counts = ", ".join(f"{len(items)} {level}{'' if len(items) == 1 else 's'}" for level, items in levels)
    console.print(counts, highlight=False)


def _finding(problem: Problem) -> dict[str, object]:
    return {"file": problem.file, "line": problem.line, "key": problem.key, "message": problem.message}


def print_explanation(console: Console, explanation: Explanation) -> None:
    """Facts, routes, decision, what would change it."""
    facts = Table("fact", "value", title="the request", title_justify="left")
    for name, value in explanation.facts.items():
        facts.add_row(name, escape(value if isinstance(value, str) else msgspec.json.encode(value).decode()))
    console.print(facts)
    routes = Table("route", "", "condition", "seen", "wanted", title="routes, in order", title_justify="left")
    for trace in explanation.routes:
        style = "green" if trace.route == explanation.route else "dim" if trace.outcome == "not asked" else ""
        heads = [(trace.route, trace.outcome)] + [("", "")] * len(trace.conditions)
        rows = [(item.condition, item.seen, item.wanted) for item in trace.conditions] or [("", "", "")]
        for head, row in zip(heads, rows, strict=False):
            routes.add_row(*map(escape, (*head, *row)), style=style)
    console.print(routes)
    rule = escape(explanation.rule)
    if explanation.refused is not None:
        error = explanation.refused
        console.print(f"[bold red]refused[/] with {error.status}: {escape(error.message)}", highlight=False)
    if explanation.decision is not None:
        _print_decision(console, explanation.decision)
    console.print(f"route [bold]{explanation.route}[/], by the rule: {rule}", highlight=False)
    fields = Table("setting", "value", "from", title="where it comes from", title_justify="left")
    for item in explanation.fields:
        fields.add_row(item.field, escape(item.value), escape(item.origin))
    console.print(fields)
    console.print("what would change it:", highlight=False)
    for change in explanation.changes:
        console.print(f"  - {escape(change)}", highlight=False, soft_wrap=True)


def _print_decision(console: Console, decision: Decision) -> None:
    text = f"drafters {_drafters(decision)}, k {shown_k(decision)}, backend {', '.join(decision.backends)}"
    reason = f" ({decision.reason})" if decision.reason else ""
    console.print(f"[bold green]decision[/]: {escape(text + reason)}", highlight=False)


def _drafters(decision: Decision) -> str:
    names = ", ".join(decision.drafters)
    return f"auto: {names}" if decision.auto else names or "none"


def print_outcomes(console: Console, outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    """A line per case; what a failed one expected (-) and got (+), and the explanation of that; a summary last."""
    if as_json:
        print(msgspec.json.encode(list(outcomes)).decode())
        return
    for outcome in outcomes:
        word = "[green]ok[/]" if outcome.passed else "[bold red]failed[/]"
        where = f"{outcome.file}:{outcome.line}: {outcome.name}"
        console.print(f"{word} {escape(where)}", highlight=False, soft_wrap=True)
        for line in differences(outcome)[1:] if not outcome.passed else ():
            style = {"-": "red", "+": "green"}.get(line[0])
            console.print(f"  {line}", style=style, markup=False, highlight=False, soft_wrap=True)
        if outcome.explanation is not None:
            print_explanation(console, outcome.explanation)
    failed = sum(not outcome.passed for outcome in outcomes)
    console.print(f"{len(outcomes) - failed} passed, {failed} failed", highlight=False)
