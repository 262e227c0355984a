"""How likely a coupled draft is right, from how clearly it was drawn.

The gap between a drafter's two best perturbed scores predicts acceptance better than its probability does. A margin is
that gap for the best, and how far it lies behind the best, negative, for any other (``sampler.Proposals``). Margins
fall into a few bins; each bin counts, with decay, how often drafts in it were accepted. Greedy and sampled rows have
bins of their own: their scores have different units.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right

EDGES = (-6.0, -4.0, -2.5, -1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5, 2.5, 4.0, 6.0, 9.0)
DECAY = 0.995
PRIOR_WEIGHT = 8.0


class Calibration:
    """Acceptance by gap. Deterministic; learns from ``observe``."""

    def __init__(self) -> None:
        ends = (2 * EDGES[0], *EDGES, 2 * EDGES[-1])
        prior = [_prior((a + b) / 2) for a, b in itertools.pairwise(ends)]
        self._hits = [[p * PRIOR_WEIGHT for p in prior] for _ in range(2)]
        self._tries = [[PRIOR_WEIGHT] * len(prior) for _ in range(2)]

    def probability(self, margin: float, greedy: bool) -> float:
        """Chance that a draft with this margin is accepted, its predecessors being accepted."""
        i = bisect_right(EDGES, margin)
        return self._hits[greedy][i] / self._tries[greedy][i]

    def observe(self, margin: float, greedy: bool, accepted: bool) -> None:
        """A draft with this margin, behind accepted ones, was accepted or not."""
        i = bisect_right(EDGES, margin)
        hits, tries = self._hits[greedy], self._tries[greedy]
        hits[i] = hits[i] * DECAY + accepted
        tries[i] = tries[i] * DECAY + 1.0


def _prior(margin: float) -> float:
    """What is expected before anything was seen."""
    return 1.0 - 0.7 * math.exp(-0.6 * margin) if margin >= 0 else 0.3 * math.exp(0.6 * margin)
