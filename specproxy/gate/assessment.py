"""Evidence against rules: what is proven, what is not, and what a promotion still lacks.

False promotion: the goal and every margin must each be proven, so a candidate that misses one of them passes that one
with a probability of alpha at most (Berger's intersection-union test); where two places may prove a margin, each has
half of alpha. False rejection: any one proof of harm rejects, so alpha is divided among all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from specproxy.gate.evidence import Comparison, Evidence
from specproxy.gate.rules import ALPHA, SUSPECT_ALPHA, Rules
from specproxy.gate.statistics import Mean, Verdict

Place = Literal["audit", "shadow", "live"]

SPEED, COST, MISMATCHES, ENGINE_ERRORS = "speed", "cost", "mismatches", "engine_errors"

ACCEPTED_LENGTH, MEMORY = "accepted_length", "memory"
"""Shown beside the others and judged by no rule, so that they stay open: tokens of a step, bytes of drafters."""


class Finding(Struct, frozen=True, omit_defaults=True):
    """One metric in one place. ``estimate``: speed, cost and tails as ratio candidate to control, less 1; rates as
    difference; mismatches as share; with ``low`` and ``high`` at 95 % where it is a mean. ``suspect``: harm is likely,
    not proven. ``candidate`` and ``control``: observations of each arm (pairs count in both). ``mine`` and ``other``:
    the value of the candidate and of the control, where it says more than their ratio. ``left_to_live``: a speed in
    shadow that nobody can tell, as users work nearly always; live traffic alone has to prove it."""

    metric: str
    place: Place
    verdict: Verdict
    suspect: bool = False
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    candidate: int = 0
    control: int = 0
    mine: float | None = None
    other: float | None = None
    left_to_live: bool = False

    def __str__(self) -> str:
        arms = ""
        if self.mine is not None and self.other is not None:
            scale, unit = (1e6, " MB") if self.metric == MEMORY else (1, "")
            arms = f" {self.mine / scale:.2f}{unit} against {self.other / scale:.2f}{unit}"
        seen = "" if self.estimate is None else f" {self.estimate:+.2%}"
        between = "" if self.low is None or self.high is None else f" ({self.low:+.2%} to {self.high:+.2%})"
        left = ", left to live traffic: users were there nearly always" if self.left_to_live else ""
        return f"{self.metric} ({self.place}){arms}{seen}{between}, n = {self.candidate}{left}"


class Assessment(Struct, frozen=True):
    """Every finding, as it was when the gate looked. It is the evidence that the audit log keeps."""

    findings: tuple[Finding, ...]

    def failed(self) -> tuple[Finding, ...]:
        """Proofs of harm."""
        return tuple(finding for finding in self.findings if finding.verdict == "fail")

    def suspects(self) -> tuple[Finding, ...]:
        """Likely harm in live traffic."""
        return tuple(finding for finding in self.findings if finding.suspect and finding.place == "live")

    def of(self, metric: str, place: Place | None = None) -> tuple[Finding, ...]:
        """The findings of one metric, in one place or in all."""
        return tuple(f for f in self.findings if f.metric == metric and place in (None, f.place))

    def incorrect(self) -> tuple[Finding, ...]:
        """Proofs that answers are wrong or the engine fails, whatever the speed."""
        return tuple(finding for finding in self.failed() if finding.metric in (MISMATCHES, ENGINE_ERRORS))

    def lacking_for_canary(self) -> list[str]:
        """What is not proven yet before users may be served: correctness, and the goal in shadow, if that is not
        left to live traffic."""
        return [*self._unproven(MISMATCHES, "audit"), *self._unproven(SPEED, "shadow")]

    def lacking_for_active(self, rules: Rules) -> list[str]:
        """What is not proven yet before the candidate may take over: the goal in live traffic, and every margin in one
        of the two places. A rate that never occurred is not asked for."""
        lacking = [*self.lacking_for_canary(), *self._unproven(SPEED, "live")]
        for metric in (COST, *rules.tail_margins, *rules.must_prove):
            verdicts = {finding.verdict for finding in self.of(metric)}
            if "pass" in verdicts or (metric in rules.rate_margins and verdicts == {"absent"}):
                continue
            lacking.append("; ".join(str(finding) for finding in self.of(metric)))
        return lacking

    def _unproven(self, metric: str, place: Place) -> list[str]:
        open_ones = (f for f in self.of(metric, place) if f.verdict != "pass" and not f.left_to_live)
        return [str(finding) for finding in open_ones]


def assess(evidence: Evidence, rules: Rules) -> Assessment:
    """Judge everything that was observed."""
    mismatches = evidence.mismatches
    audited = mismatches.clean + mismatches.hard
    share = mismatches.hard / audited if audited else None
    audit = Finding(MISMATCHES, "audit", mismatches.verdict, estimate=share, candidate=audited)
    return Assessment((audit, *_compare(evidence.shadow, "shadow", rules), *_compare(evidence.live, "live", rules)))


def _compare(seen: Comparison, place: Place, rules: Rules) -> Iterator[Finding]:
    """The findings of one place."""
    errors: Verdict = "fail" if seen.engine_errors else "pass" if seen.num_candidate else "absent"
    yield Finding(ENGINE_ERRORS, place, errors, candidate=seen.num_candidate, control=seen.num_control)
    speed = _mean_finding(SPEED, place, seen.speed, rules.least_log_gain, rules, higher_is_better=True)
    left = speed.verdict in ("open", "absent") and seen.disturbed >= max(rules.min_samples, seen.speed.n + 1)
    yield replace(speed, left_to_live=left)
    yield _mean_finding(COST, place, seen.cost, math.log1p(rules.cost_margin), rules, higher_is_better=False)
    for name, tail in seen.tails.items():
        verdict, suspect = _judge(rules, partial(tail.verdict, rules.pass_alpha))
        ratio = tail.ratio()
        estimate = None if ratio is None else ratio - 1
        yield Finding(name, place, verdict, suspect, estimate, None, None, tail.num_candidate, tail.num_control)
    for name, rate in seen.rates.items():
        verdict, suspect = _judge(rules, partial(rate.verdict, rules.rate_margins[name], rules.pass_alpha))
        estimate = rate.difference if rate.candidate and rate.control else None
        yield Finding(name, place, verdict, suspect, estimate, None, None, rate.candidate, rate.control)
    mine, other = seen.candidate_work, seen.control_work
    for name, ours, theirs in (
        (ACCEPTED_LENGTH, mine.accepted_length, other.accepted_length),
        (MEMORY, mine.memory, other.memory),
    ):
        if ours is not None and theirs is not None:
            ratio = ours / theirs - 1 if theirs else None
            counts = (mine.answers, other.answers)
            yield Finding(name, place, "open", False, ratio, None, None, *counts, mine=ours, other=theirs)


def _mean_finding(
    metric: str, place: Place, mean: Mean, bound: float, rules: Rules, *, higher_is_better: bool
) -> Finding:
    """A mean of log ratios against the bound that it must keep above or below."""
    pass_alpha = ALPHA if metric == SPEED else rules.pass_alpha

    def judge(alpha: float) -> Verdict:
        if not mean.n:
            return "absent"
        if mean.n < rules.min_samples:
            return "open"
        above = mean.lower(pass_alpha if higher_is_better else alpha) > bound
        below = mean.upper(alpha if higher_is_better else pass_alpha) < bound
        if not above and not below:
            return "open"
        return "pass" if above == higher_is_better else "fail"

    verdict, suspect = _judge(rules, judge)
    if mean.n < 2:
        return Finding(metric, place, verdict, candidate=mean.n, control=mean.n)
    low, high = (math.expm1(end) if math.isfinite(end) else None for end in mean.interval(ALPHA))
    return Finding(metric, place, verdict, suspect, math.expm1(mean.mean), low, high, mean.n, mean.n)


def _judge(rules: Rules, judge: Callable[[float], Verdict]) -> tuple[Verdict, bool]:
    """The verdict, and whether harm is likely: ``judge`` is given the error probability for a proof of harm."""
    verdict = judge(SUSPECT_ALPHA)
    if verdict != "fail":
        return verdict, False
    return judge(rules.fail_alpha), True
