"""Explain a decision: facts, every route in order with what decided about it, where each field comes from.

It asks the same conditions, limits and overrides as ``decide`` does, and only writes down what they say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from specproxy.errors import InvalidRequest
from specproxy.policy.catalogue import ENGINE
from specproxy.policy.conditions import failures
from specproxy.policy.facts import OVERRIDE_HEADER, Facts
from specproxy.policy.inherit import Origin, as_names, k_range, speculation
from specproxy.policy.policy import CompiledRoute, PolicySet, Verdict
from specproxy.policy.schema import CaptureTo
from specproxy.vocabulary import Decision, ErrorInfo

_SECRET_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "cookie", "proxy-authorization"})
_LONGEST = 200
_SETTINGS: tuple[tuple[str, ...], ...] = (
    ("backend",),
    ("speculate", "drafters"),
    ("speculate", "k"),
    ("speculate", "tree", "width"),
    ("speculate", "tree", "nodes"),
    ("exactness",),
    ("override",),
    ("limits", "max_tokens"),
    ("limits", "prompt_tokens"),
    ("limits", "tool_calls"),
    ("limits", "timeout_s"),
    ("capture",),
)


class ConditionTrace(Struct, frozen=True):
    """A condition with the value that it saw and the one that it wanted."""

    condition: str
    seen: str
    wanted: str


class RouteTrace(Struct, frozen=True):
    """What one route said. ``conditions``: the one that decided, or, where no alternative of an ``any`` held, the one
    of each; empty where the route takes every request or was not asked."""

    route: str
    file: str
    line: int
    outcome: Literal["yes", "no", "takes every request", "not asked"]
    conditions: list[ConditionTrace] = []


class FieldOrigin(Struct, frozen=True):
    """A setting of the decision, and where it comes from."""

    field: str
    value: str
    origin: str


class Explanation(Struct, frozen=True):
    """Everything about one decision. Exactly one of ``decision`` and ``refused`` is there."""

    facts: dict[str, Any]
    routes: list[RouteTrace]
    route: str
    rule: str
    decision: Decision | None
    refused: ErrorInfo | None
    fields: list[FieldOrigin]
    changes: list[str]


def explain(policies: PolicySet, facts: Facts) -> Explanation:
    """Explain what ``policies`` decide about ``facts``."""
    chosen, rule = policies.route_for(facts)
    verdict: Verdict | None = None
    refused: ErrorInfo | None = None
    try:
        verdict = policies.decide(facts)
    except InvalidRequest as error:
        refused = error.info()
    traces = [_trace(route, chosen, policies.routes, facts) for route in policies.routes]
    return Explanation(
        facts=shown_facts(facts),
        routes=traces,
        route=chosen.name,
        rule=rule,
        decision=None if verdict is None else verdict.decision,
        refused=refused,
        fields=list(_fields(chosen, verdict)),
        changes=list(_changes(policies, chosen, traces, facts, verdict)),
    )


def shown_facts(facts: Facts) -> dict[str, Any]:
    """The facts that the request gives, without secrets, long texts cut."""
    shown: dict[str, Any] = {}
    for name, value in msgspec.to_builtins(facts).items():
        if value is None or value in ("", {}, []):
            continue
        if isinstance(value, str) and len(value) > _LONGEST:
            value = f"{value[:_LONGEST]}… ({len(value)} characters)"
        shown[name] = value
    if "headers" in shown:
        shown["headers"] = {k: "(hidden)" if k in _SECRET_HEADERS else v for k, v in shown["headers"].items()}
    return shown


def _trace(route: CompiledRoute, chosen: CompiledRoute, routes: Sequence[CompiledRoute], facts: Facts) -> RouteTrace:
    where = (route.name, route.source.document.file, route.source.line)
    if routes.index(route) > routes.index(chosen):
        return RouteTrace(*where, "not asked")
    if route.condition is None:
        return RouteTrace(*where, "takes every request")
    holds, decider = route.condition.evaluate(facts)
    deciders = [decider] if holds else failures(route.condition, facts)
    conditions = [ConditionTrace(item.where or "match", *item.describe(facts)) for item in deciders]
    return RouteTrace(*where, "yes" if holds else "no", conditions)


def _fields(route: CompiledRoute, verdict: Verdict | None) -> Iterator[FieldOrigin]:
    settings, spec = route.effective.settings, speculation(route.effective.settings)
    limits = settings.limits
    values: dict[tuple[str, ...], object] = {
        ("backend",): ", ".join(as_names(settings.backend)),
        ("speculate", "drafters"): ", ".join(as_names(spec.drafters)),
        ("speculate", "k"): str(k_range(settings)),
        ("speculate", "tree", "width"): spec.tree.width,
        ("speculate", "tree", "nodes"): spec.tree.nodes,
        ("exactness",): settings.exactness,
        ("override",): settings.override,
        ("limits", "max_tokens"): limits.max_tokens,
        ("limits", "prompt_tokens"): limits.prompt_tokens,
        ("limits", "tool_calls"): limits.tool_calls,
        ("limits", "timeout_s"): limits.timeout_s,
        ("capture",): _where(route.captures),
    }
    overridden = {} if verdict is None or not verdict.overridden else _overridden(verdict.decision)
    for path in _SETTINGS:
        if path in overridden:
            yield FieldOrigin(".".join(path), overridden[path], "request")
        elif path == ("speculate", "k"):
            yield FieldOrigin(".".join(path), str(values[path]), _k_origin(route))
        else:
            value = values[path]
            text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            yield FieldOrigin(".".join(path), text, str(route.effective.origin(*path)))


def _k_origin(route: CompiledRoute) -> str:
    """The two ends of a range may come from two places."""
    origins: list[Origin] = [route.effective.origin("speculate", "k", end) for end in ("min", "max")]
    if origins[0] == origins[1]:
        return str(origins[0])
    return f"min: {origins[0]}, max: {origins[1]}"


def _overridden(decision: Decision) -> dict[tuple[str, ...], str]:
    drafters = ", ".join(decision.drafters) or "none"
    return {("speculate", "drafters"): drafters, ("speculate", "k"): shown_k(decision)}


def shown_k(decision: Decision) -> str:
    """The range of a decision's k."""
    if not decision.drafters:
        return "off"
    if not decision.adaptive:
        return str(decision.k_min)
    return f"{decision.k_min} to {'the drafter’s own limit' if decision.k_max is None else decision.k_max}"


def _subject(where: str) -> str:
    """``any[2].metadata.category`` as ``metadata.category``."""
    return re.sub(r"^((any|all)\[\d+\]\.?)+", "", where) or where


def _changes(
    policies: PolicySet, chosen: CompiledRoute, traces: list[RouteTrace], facts: Facts, verdict: Verdict | None
) -> Iterator[str]:
    """What would have to be different for another decision."""
    for trace in traces:
        for item in trace.conditions if trace.outcome == "no" else ():
            yield f"{_subject(item.condition)} {item.wanted} (it is {item.seen}): towards route {trace.route}"
    later = policies.routes[policies.routes.index(chosen) + 1 :]
    following = next((route for route in later if route.matches(facts) is not None), None)
    if chosen.condition is not None and following is not None:
        yield f"a request that route {chosen.name} does not take would go to route {following.name}"
    if chosen.allowance.allowed and chosen.allowance.drafters:
        names = ", ".join(chosen.allowance.drafters)
        yield f"header {OVERRIDE_HEADER}: off, auto or one of {names}, with ;k=N for k of {chosen.allowance.k}"
    elif not chosen.allowance.allowed:
        yield f"override: true on the route would let a request choose; it is {chosen.effective.origin('override')}"
    if ENGINE not in as_names(chosen.effective.settings.backend):
        yield f"engine among the backends: only there it drafts; backend is {chosen.effective.origin('backend')}"
    elif verdict is not None and not verdict.decision.drafters and not verdict.overridden:
        off = chosen.allowance.k.off
        yield (
            f"a k above 0: it is {_k_origin(chosen)}" if off else "a drafter in the start configuration: there is none"
        )


def _where(captures: bool | CaptureTo) -> str:
    """Whether a route keeps answers, and where."""
    if isinstance(captures, CaptureTo):
        return f"on ({captures.dir}, {captures.max_mb} MiB)"
    return "on" if captures else "off"
