"""Policy tests: requests with the decisions that are expected of them, in ``tests/*.yaml`` of a policy directory.

    tests:
      - name: tool calls draft long
        request: {messages: [{role: user, content: hello}], tools: [...]}
        expect: {route: structured, k: {min: 4, max: 12}}

A request may be an envelope with ``body``, ``headers``, ``prompt_tokens`` and so on. Only what ``expect`` names is
compared; ``error`` expects a refusal whose message holds that text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from specproxy.config.validate import check
from specproxy.config.yaml_reader import Document, Problem, read_yaml
from specproxy.errors import ConfigError, PolicyError
from specproxy.policy.catalogue import AUTO
from specproxy.policy.explain import Explanation, explain, shown_k
from specproxy.policy.facts import Facts
from specproxy.policy.inherit import as_names, as_range
from specproxy.policy.policy import PolicySet
from specproxy.policy.request_file import as_envelope
from specproxy.policy.schema import Closed, KRange, Nodes, Off, Switch, Tree

FOLDER = "tests"


class ExpectLimits(Closed):
    """The limits that are expected; null: none."""

    max_tokens: float | UnsetType | None = UNSET
    prompt_tokens: float | UnsetType | None = UNSET
    tool_calls: float | UnsetType | None = UNSET
    timeout_s: float | UnsetType | None = UNSET


class Expect(Closed):
    """What is expected of a decision; what is not named may be anything."""

    route: str | UnsetType = UNSET
    rule: str | UnsetType = UNSET
    backend: str | list[str] | UnsetType = UNSET
    drafters: Off | str | list[str] | UnsetType = UNSET
    k: Literal["auto"] | Nodes | KRange | Off | UnsetType = UNSET
    tree: Tree | UnsetType = UNSET
    exactness: Literal["bitwise", "numeric"] | UnsetType = UNSET
    limits: ExpectLimits | UnsetType = UNSET
    capture: Switch | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    error: str | UnsetType = UNSET


class Case(Closed, kw_only=True):
    """One request and what is expected of it."""

    name: Annotated[str, Meta(min_length=1)]
    request: dict[str, Any]
    expect: Expect


class CaseFile(Closed, kw_only=True):
    """One file of policy tests."""

    tests: Annotated[list[Case], Meta(min_length=1)]


class Mismatch(Struct, frozen=True):
    """One expectation that did not come true."""

    field: str
    expected: str
    got: str


class Outcome(Struct, frozen=True):
    """What became of one case. ``explanation`` where it failed."""

    file: str
    line: int
    name: str
    mismatches: list[Mismatch]
    explanation: Explanation | None = None

    @property
    def passed(self) -> bool:
        """Whether everything expected came true."""
        return not self.mismatches


def differences(outcome: Outcome) -> list[str]:
    """What a failed case expected and what it got, as the lines of a diff: ``-`` expected, ``+`` got."""
    lines = [f"{outcome.file}:{outcome.line}: {outcome.name}"]
    for mismatch in outcome.mismatches:
        lines += [f"- {mismatch.field}: {mismatch.expected}", f"+ {mismatch.field}: {mismatch.got}"]
    got = outcome.explanation
    return lines if got is None else [*lines, f"route {got.route} took it, by the rule: {got.rule}"]


def run_tests(directory: Path, policies: PolicySet) -> list[Outcome]:
    """Run every ``*.yaml`` of ``directory/tests``, in name order. Raises PolicyError for files that are wrong."""
    problems: list[Problem] = []
    outcomes: list[Outcome] = []
    for path in sorted((directory / FOLDER).glob("*.yaml")):
        document = read_yaml(path, problems)
        before = len(problems)
        if document is not None:
            check(document, CaseFile, problems)
            if len(problems) == before:
                outcomes += _run_file(document, policies, problems)
    if problems:
        raise PolicyError([str(problem) for problem in problems])
    return outcomes


def _run_file(document: Document, policies: PolicySet, problems: list[Problem]) -> Iterator[Outcome]:
    cases = msgspec.convert(document.value, CaseFile).tests
    for index, case in enumerate(cases):
        path = ("tests", index)
        try:
            facts = as_envelope(case.request, "request").facts()
        except ConfigError as error:
            problems.append(document.problem((*path, "request"), str(error)))
            continue
        mismatches = list(compare(case.expect, policies, facts))
        explanation = explain(policies, facts) if mismatches else None
        yield Outcome(document.file, document.line(path), case.name, mismatches, explanation)


def compare(expect: Expect, policies: PolicySet, facts: Facts) -> Iterator[Mismatch]:
    """Everything that is not as expected."""
    explanation = explain(policies, facts)
    refused, decision = explanation.refused, explanation.decision
    if expect.error is not UNSET:
        got = "an answer" if refused is None else refused.message
        if refused is None or expect.error not in refused.message:
            yield Mismatch("error", expect.error, got)
    elif refused is not None:
        yield Mismatch("error", "an answer", refused.message)
    yield from _differ("route", expect.route, explanation.route)
    yield from _differ("rule", expect.rule, explanation.rule)
    if expect.capture is not UNSET:
        found = next(item.value for item in explanation.fields if item.field == "capture")
        yield from _differ("capture", "on" if expect.capture in ("on", True) else "off", found.partition(" ")[0])
    if decision is None:
        return
    if expect.backend is not UNSET:
        yield from _differ("backend", ", ".join(as_names(expect.backend)), ", ".join(decision.backends))
    if expect.drafters is not UNSET:
        wanted = "off" if expect.drafters is False else ", ".join(as_names(expect.drafters))  # type: ignore[arg-type]
        names = ", ".join(decision.drafters)
        yield from _differ("drafters", wanted, "off" if not names else AUTO if decision.auto else names)
    if expect.k is not UNSET:
        yield from _differ("k", str(as_range(expect.k)), shown_k(decision))
    if expect.tree is not UNSET:
        yield from _differ(
            "tree", _tree(expect.tree), _tree(Tree(width=decision.tree_width, nodes=decision.tree_nodes))
        )
    yield from _differ("exactness", expect.exactness, decision.exactness)
    yield from _differ("reason", expect.reason, decision.reason or "none")
    if expect.limits is not UNSET:
        got_limits = msgspec.structs.asdict(policies.decide(facts).limits)
        for name, value in msgspec.structs.asdict(expect.limits).items():
            if value is not UNSET and value != got_limits[name]:
                yield Mismatch(f"limits.{name}", str(value), str(got_limits[name]))


def _differ(field: str, expected: str | UnsetType, got: str) -> Iterator[Mismatch]:
    if expected is not UNSET and expected != got:
        yield Mismatch(field, expected, got)


def _tree(tree: Tree) -> str:
    return f"width {tree.width}, nodes {tree.nodes}"
