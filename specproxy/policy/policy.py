"""PolicySet: a directory of policy files, compiled; ``decide`` turns a request's facts into a Verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from specproxy.errors import InvalidRequest, PolicyError
from specproxy.policy.catalogue import AUTO, ENGINE, Catalogue
from specproxy.policy.checks import check_capture, check_set, check_settings, route_problems
from specproxy.policy.conditions import Condition, MatchCompiler
from specproxy.policy.facts import Facts
from specproxy.policy.inherit import Effective, Range, as_names, inherit, k_range, speculation
from specproxy.policy.override import Allowance, grant, parse_override
from specproxy.policy.predicates import RegexGuard
from specproxy.policy.reach import unreachable
from specproxy.policy.reading import Findings, RouteSource, read_directory
from specproxy.policy.revision import route_revision, set_hash
from specproxy.policy.schema import CaptureTo
from specproxy.vocabulary import Decision

CATCH_ALL = "any request"
"""The rule of a route without match."""


class EffectiveLimits(Struct, frozen=True):
    """Limits of the route that a request was given to; ``None``: none. A request without ``max_tokens`` gets it from
    here; ``timeout_s`` in seconds."""

    max_tokens: int | None
    prompt_tokens: int | None
    tool_calls: int | None
    timeout_s: float | None


class Verdict(Struct, frozen=True):
    """What was decided about one request. ``decision.revision`` is 64 hex digits; ``overridden``: by the request;
    ``capture``: whether its answer may be kept for training, or where."""

    decision: Decision
    limits: EffectiveLimits
    overridden: bool = False
    capture: bool | CaptureTo = False


@dataclass(frozen=True)
class CompiledRoute:
    """A route ready to decide. ``condition`` None: it takes every request."""

    source: RouteSource
    effective: Effective
    condition: Condition | None
    decision: Decision
    limits: EffectiveLimits
    allowance: Allowance

    @property
    def name(self) -> str:
        """The route's name, unique in its set."""
        return self.source.name

    @property
    def captures(self) -> bool | CaptureTo:
        """Whether its answers may be kept for training, or where."""
        capture = self.effective.settings.capture
        return capture == "on" if isinstance(capture, str) else capture

    def matches(self, facts: Facts) -> str | None:
        """The rule by which the route takes the request, or ``None``."""
        if self.condition is None:
            return CATCH_ALL
        holds, decider = self.condition.evaluate(facts)
        return (decider.where or "match") if holds else None


class PolicySet:
    """Immutable; a reload makes a new one. ``hash``: SHA-256 of the set. ``counts_tokens``: its decisions may depend on
    a prompt's length in tokens. ``warnings``: one line each, as of loading."""

    def __init__(
        self, directory: Path, routes: Sequence[CompiledRoute], catalogue: Catalogue, guard: RegexGuard
    ) -> None:
        """Made by ``load`` or ``read``; the last of ``routes`` that can be reached takes every request."""
        self.directory = directory
        self.routes = tuple(routes)
        self.catalogue = catalogue
        self.hash = set_hash([(route.name, route.decision.revision) for route in routes])
        self.counts_tokens = any(_asks_prompt_tokens(route) for route in self.routes)
        self.warnings: tuple[str, ...] = ()
        self._guard = guard

    @classmethod
    def load(cls, directory: Path, catalogue: Catalogue) -> PolicySet:
        """Read, check and compile every ``*.yaml`` of ``directory``. Raises PolicyError with all problems found."""
        policies, findings = cls.read(directory, catalogue)
        if policies is None:
            raise PolicyError([str(problem) for problem in findings.errors])
        return policies

    @classmethod
    def read(cls, directory: Path, catalogue: Catalogue) -> tuple[PolicySet | None, Findings]:
        """As ``load``, with everything found; no set where there are errors."""
        findings, guard = Findings(), RegexGuard()
        source = read_directory(directory, findings)
        layers = [] if source.defaults is None else [source.defaults]
        check_settings(inherit(layers), catalogue, findings)
        routes = []
        for item in source.routes:
            effective = inherit([*layers, item.layer])
            check_settings(effective, catalogue, findings, item.name)
            compiler = MatchCompiler(guard, route_problems(item, findings))
            condition = compiler.compile(item.match) if item.match else None
            routes.append(_compile(item, effective, condition, catalogue))
        for index, reason in unreachable([(route.name, route.condition) for route in routes]):
            item = source.routes[index]
            findings.warnings.append(item.problem((), f"route {item.name} can never be reached: {reason}"))
        check_capture(source, any(route.captures is True for route in routes), catalogue, findings)
        check_set(source, findings)
        findings = findings.sort()
        if findings.errors:
            return None, findings
        policies = cls(directory, routes, catalogue, guard)
        policies.warnings = tuple(str(problem) for problem in findings.warnings)
        return policies, findings

    @property
    def regex_timeouts(self) -> int:
        """How often a regular expression ran out of time, since loading; it then counted as no match."""
        return self._guard.num_timeouts

    def route_for(self, facts: Facts) -> tuple[CompiledRoute, str]:
        """The first route that matches, and the rule by which it does."""
        for route in self.routes:
            rule = route.matches(facts)
            if rule is not None:
                return route, rule
        raise PolicyError([f"{self.directory}: no route takes every request"])

    def decide(self, facts: Facts) -> Verdict:
        """The first route that matches decides. Raises InvalidRequest where a limit is exceeded, or where the request's
        own override is malformed or not allowed."""
        route, rule = self.route_for(facts)
        check_limits(facts, route.limits, route.name)
        decision = msgspec.structs.replace(route.decision, rule=rule)
        override = parse_override(facts)
        if override is None:
            return Verdict(decision, route.limits, capture=route.captures)
        names, auto, k = grant(override, route.allowance, self.catalogue)
        reason = decision.reason if names else "the request asked for no speculation"
        drafting = _drafting(decision, names, auto, k, reason)
        return Verdict(drafting, route.limits, overridden=True, capture=route.captures)


def _asks_prompt_tokens(route: CompiledRoute) -> bool:
    """Whether a condition or a limit of the route is about the prompt's length in tokens."""
    waiting: list[object] = [route.source.match]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            if "prompt_tokens" in part:
                return True
            waiting.extend(part[key] for key in ("any", "all", "not") if key in part)
        elif isinstance(part, list):
            waiting.extend(part)
    return route.limits.prompt_tokens is not None


def check_limits(facts: Facts, limits: EffectiveLimits, route: str) -> None:
    """Refuse what is beyond ``limits``. Raises InvalidRequest; nothing is ever clamped."""
    for what, param, value, limit in (
        ("max_tokens", "max_tokens", facts.max_tokens, limits.max_tokens),
        ("the prompt's length in tokens", "messages", facts.prompt_tokens, limits.prompt_tokens),
        ("the number of tool calls so far", "messages", facts.tool_calls, limits.tool_calls),
    ):
        if limit is not None and value is not None and value > limit:
            message = f"{what} is {value}; route {route} of this server allows {limit} at most"
            raise InvalidRequest(message, param=param, code="route_limit_exceeded")


def _compile(
    source: RouteSource, effective: Effective, condition: Condition | None, catalogue: Catalogue
) -> CompiledRoute:
    settings, k = effective.settings, k_range(effective.settings)
    spec = speculation(settings)
    auto = spec.drafters == AUTO
    elsewhere = ENGINE not in as_names(settings.backend)
    names = () if k.off or elsewhere else catalogue.drafter_names if auto else as_names(spec.drafters)
    reason = None if names else "no drafter is loaded"
    if elsewhere:
        reason = f"route {source.name} goes to upstreams, which speculate as they are set up"
    elif k.off:
        reason = f"speculation is off on route {source.name}"
    plain = Decision(
        route=source.name,
        revision=route_revision(source, effective, names, catalogue),
        backends=as_names(settings.backend),
        tree_width=spec.tree.width,
        tree_nodes=spec.tree.nodes,
        exactness=settings.exactness,
    )
    limits = settings.limits
    return CompiledRoute(
        source,
        effective,
        condition,
        _drafting(plain, names, auto, k, reason),
        EffectiveLimits(limits.max_tokens, limits.prompt_tokens, limits.tool_calls, limits.timeout_s),
        Allowance(source.name, settings.override, names, k),
    )


def _drafting(decision: Decision, names: tuple[str, ...], auto: bool, k: Range, reason: str | None) -> Decision:
    """``decision`` with what it drafts; without drafters it is plain decoding, whatever the range."""
    if not names:
        k, auto = Range(0, 0, False), False
    return msgspec.structs.replace(
        decision, drafters=names, auto=auto, k_min=k.min, k_max=k.max, adaptive=k.adaptive, reason=reason
    )
