"""How likely a coupled draft is right, from how clear the drafter's choice was.

The gap between a drafter's two best perturbed scores predicts acceptance better than its probability does. Gaps fall
into a few bins; each bin counts, with decay, how often drafts in it were accepted. Greedy and sampled rows have bins of
their own: their scores have different units.
"""

from __future__ import annotations

import math
from bisect import bisect_right

EDGES = (0.25, 0.5, 1.0, 1.5, 2.5, 4.0, 6.0, 9.0)
DECAY = 0.995
PRIOR_WEIGHT = 8.0


class Calibration:
    """Acceptance by gap. Deterministic; learns from ``observe``."""

    def __init__(self) -> None:
        centres = [(a + b) / 2 for a, b in zip((0.0, *EDGES), (*EDGES, 2 * EDGES[-1]), strict=True)]
        prior = [1.0 - 0.7 * math.exp(-0.6 * centre) for centre in centres]
        self._hits = [[p * PRIOR_WEIGHT for p in prior] for _ in range(2)]
        self._tries = [[PRIOR_WEIGHT] * len(prior) for _ in range(2)]

    def probability(self, gap: float, greedy: bool) -> float:
        """Chance that a draft with this gap is accepted, its predecessors being accepted."""
        i = bisect_right(EDGES, gap)
        return self._hits[greedy][i] / self._tries[greedy][i]

    def observe(self, gap: float, greedy: bool, accepted: bool) -> None:
        """A draft with this gap, behind accepted ones, was accepted or not."""
        i = bisect_right(EDGES, gap)
        hits, tries = self._hits[greedy], self._tries[greedy]
        hits[i] = hits[i] * DECAY + accepted
        tries[i] = tries[i] * DECAY + 1.0
