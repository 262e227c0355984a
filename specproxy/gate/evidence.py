"""What was observed of one candidate: all that the gate may decide by. Plain data that a store can keep."""

from __future__ import annotations

import math

from msgspec import Struct, field

from specproxy.gate.mismatches import Mismatches
from specproxy.gate.rates import RatePair
from specproxy.gate.rules import Rules
from specproxy.gate.statistics import Mean
from specproxy.gate.tails import Tail


class Work(Struct):
    """Sums over one arm's answers. ``steps``: of the target, that made the ``tokens``; ``memory``: bytes that the
    drafters which it may use hold beside the target, of the last answer, ``None`` where that is not known."""

    answers: int = 0
    tokens: int = 0
    steps: int = 0
    memory: int | None = None

    @property
    def accepted_length(self) -> float | None:
        """Tokens of a step, the target's own included; ``None`` before there was one."""
        return self.tokens / self.steps if self.steps else None

    def add(self, tokens: int, steps: int, memory: int | None = None) -> None:
        """One more answer."""
        self.answers += 1
        self.tokens += tokens
        self.steps += steps
        self.memory = memory


class Comparison(Struct):
    """Candidate against control in one place. ``speed``: log ratios of tokens per second, ``cost``: of device seconds
    per conversation, each candidate over control. ``tails`` and ``rates`` by metric, as the rules name them.
    ``candidate_work`` and ``control_work``: what explains a speed; no rule is about it.

    In shadow both arms answer the same request; ``disturbed`` pairs met users' work, which changes neither tokens nor
    cost, and makes their times worthless. Live, a pair is two answers of the same stratum (queue depth, prompt length)
    at about the same time, each used once: pairs then are independent, and load cancels out.
    """

    speed: Mean = field(default_factory=Mean)
    cost: Mean = field(default_factory=Mean)
    tails: dict[str, Tail] = {}
    rates: dict[str, RatePair] = {}
    num_candidate: int = 0
    num_control: int = 0
    engine_errors: int = 0
    candidate_work: Work = field(default_factory=Work)
    control_work: Work = field(default_factory=Work)
    disturbed: int = 0

    def add_speeds(self, candidate: float, control: float) -> None:
        """Take in a pair of speeds in tokens per second, both above 0."""
        self.speed.add(math.log(candidate / control))

    def add_costs(self, candidate_s: float, control_s: float) -> None:
        """Take in a pair of device seconds, both above 0."""
        self.cost.add(math.log(candidate_s / control_s))

    def count(self, *, candidate: bool) -> None:
        """One more answer was served by the candidate or the control."""
        self.num_candidate += candidate
        self.num_control += not candidate


class Evidence(Struct):
    """All of one candidate. ``problems``: what validation found, ``None`` before it ran; ``loaded``: its drafters are
    loaded and passed their self-test."""

    mismatches: Mismatches
    shadow: Comparison
    live: Comparison
    problems: list[str] | None = None
    loaded: bool = False


def no_evidence(rules: Rules) -> Evidence:
    """The evidence of a candidate that nothing is known of yet."""
    return Evidence(Mismatches(), _nothing(rules), _nothing(rules))


def _nothing(rules: Rules) -> Comparison:
    tails = {name: Tail(margin) for name, margin in rules.tail_margins.items()}
    return Comparison(tails=tails, rates={name: RatePair() for name in rules.rate_margins})
