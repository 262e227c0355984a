"""Evidence as a server would gather it, from arms whose true speeds, latencies and rates are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from specproxy.gate.evidence import Comparison, Evidence, no_evidence
from specproxy.gate.rules import Rules, rules_for
from specproxy.gate.states import GateState, new_state
from specproxy.policy.schema import Gate, Settings

NOW = 1_000_000.0
REVISION = "ab" * 32


def rules(*, mode: str = "auto", exactness: str = "bitwise", **gate: object) -> Rules:
    """The rules of a route with the built-in defaults, but for these."""
    fields = {"mode": mode, **gate}
    return rules_for(Settings(exactness=exactness, gate=Gate(**fields)))  # type: ignore[arg-type]


def candidate(phase: str = "draft", **fields: object) -> GateState:
    """A state in this phase."""
    state = new_state("default", REVISION, NOW)
    return GateState(**{name: getattr(state, name) for name in state.__struct_fields__} | {"phase": phase, **fields})


@dataclass
class Traffic:
    """Pairs of answers. ``gain``: mean log speed ratio; ``latency``: candidate's TTFT and ITL over the control's;
    ``cost``: of device seconds; ``valid`` and ``stable``: shares of its structured outputs and replays that are as they
    should be; ``spread``: standard deviation of the log speed ratio."""

    rng: np.random.Generator
    gain: float = 0.2
    latency: float = 0.9
    cost: float = 0.9
    valid: float = 1.0
    stable: float = 1.0
    spread: float = 0.15

    def pairs(self, seen: Comparison, number: int) -> None:
        """Add ``number`` pairs to ``seen``."""
        noise = self.rng.normal(size=(number, 6))
        good = self.rng.random((number, 2)) < (self.valid, self.stable)
        for (speed, cost, ttft, itl, own, other), (valid, stable) in zip(noise.tolist(), good.tolist(), strict=True):
            control = 20.0
            seen.add_speeds(control * math.exp(self.gain + self.spread * speed), control)
            seen.add_costs(self.cost * math.exp(0.1 * cost), 1.0)
            for name, base in (("ttft_p95", 0.1 * math.exp(0.3 * ttft)), ("itl_p95", 0.01 * math.exp(0.2 * itl))):
                seen.tails[name].add_pair(self.latency * base * math.exp(0.01 * own), base * math.exp(0.01 * other))
            for name, as_it_should in (("structured", valid), ("stability", stable)):
                seen.rates[name].add(candidate=True, good=as_it_should)
                seen.rates[name].add(candidate=False, good=True)
            seen.count(candidate=True)
            seen.count(candidate=False)

    def audits(self, evidence: Evidence, given: Rules, number: int) -> None:
        """Add clean audits."""
        for _ in range(number):
            evidence.mismatches.add(given.mismatch, hard=False)


def observed(given: Rules, *, shadow: int = 0, live: int = 0, audits: int = 0, **traffic: float) -> Evidence:
    """Evidence of a valid, loaded candidate after so many pairs and audits."""
    evidence = no_evidence(given)
    evidence.problems, evidence.loaded = [], True
    source = Traffic(np.random.default_rng(5), **traffic)
    source.pairs(evidence.shadow, shadow)
    source.pairs(evidence.live, live)
    source.audits(evidence, given, audits)
    return evidence
