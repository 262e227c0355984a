"""What a candidate has to show, read from the ``gate`` mapping of its route."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

from specproxy.gate.mismatches import MismatchTest
from specproxy.policy.schema import Settings

ALPHA = 0.05
"""Probability of promoting a candidate that misses its goal or a margin, and of rejecting one that keeps all of
them."""

SUSPECT_ALPHA = 0.1
"""At this error probability a candidate is suspected, and steps down at once without being rejected."""

TIES = "ties"
"""The rate of audited answers without an explained near-tie; its control is plain decoding against plain decoding."""

RATES = ("structured", "tools", "stability", TIES)
"""The rates that have a margin: valid structured outputs, valid tool calls, conversations whose replay has identical
text, answers without a near-tie."""


class Rules(Struct, frozen=True, kw_only=True):
    """The rules of one candidate. Gains and margins are shares; ``canary`` rises; ``max_age_s`` in seconds.

    ``tail_margins`` and ``rate_margins`` name the metrics that there are. With the goal ``no_worse`` the candidate may
    be slower by ``min_gain`` at most; with ``faster`` it has to be faster by more than that.
    """

    mode: Literal["off", "auto", "manual"] = "auto"
    goal: Literal["faster", "no_worse"] = "faster"
    min_gain: float = 0.03
    mismatch: MismatchTest = MismatchTest()
    tail_margins: dict[str, float] = {}
    rate_margins: dict[str, float] = {}
    cost_margin: float = 0.05
    canary: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5, 1.0)
    min_samples: int = 50
    max_age_s: float = 168 * 3600.0

    @property
    def least_log_gain(self) -> float:
        """The mean log speed ratio that the candidate has to exceed."""
        return math.log1p(self.min_gain) if self.goal == "faster" else -math.log1p(self.min_gain)

    @property
    def must_prove(self) -> tuple[str, ...]:
        """Rates that a promotion needs proof of. Near-ties are watched everywhere, as a fault that is too small for one
        answer shows in their number; where answers are bitwise, their tokens are proven one by one, and no more is
        asked for."""
        return tuple(name for name in self.rate_margins if name != TIES or not self.mismatch.zero)

    @property
    def pass_alpha(self) -> float:
        """Error probability for keeping a margin: shadow pairs or live traffic may prove it."""
        return ALPHA / 2

    @property
    def fail_alpha(self) -> float:
        """Error probability for one proof of harm: speed, cost, tails and rates are each watched in two places."""
        return ALPHA / (2 * (2 + len(self.tail_margins) + len(self.rate_margins)))


def rules_for(settings: Settings) -> Rules:
    """The rules of a route with these effective settings."""
    gate, margins = settings.gate, settings.gate.margins
    numeric = settings.exactness == "numeric"
    test = gate.mismatch
    return Rules(
        mode="off" if isinstance(gate.mode, bool) else gate.mode,
        goal=gate.goal,
        min_gain=gate.min_gain,
        mismatch=MismatchTest(not numeric, test.p0, test.p1, test.alpha, test.beta),
        tail_margins={"ttft_p95": margins.ttft_p95, "itl_p95": margins.itl_p95},
        rate_margins={name: getattr(margins, name) for name in RATES},
        cost_margin=margins.cost,
        canary=tuple(sorted(gate.canary)),
        min_samples=gate.min_samples,
        max_age_s=gate.max_age_h * 3600,
    )
