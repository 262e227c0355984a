"""How likely the next drafts are to be accepted, learned per depth and forgotten exponentially.

For one source of drafts (a route's drafter, at one confidence) ``hits[i]`` and ``misses[i]`` count drafts at depth
i + 1 that were accepted and rejected. Drafts behind a rejected one were not tried, and count as neither. Every
observation makes the earlier ones weigh DECAY less. A depth's estimate leans on the pool of all depths, the pool on the
prior, each with the weight of PRIOR_STRENGTH observations. (`performance.md` §4: within 0.5 to 3 % of an oracle.)
"""

from __future__ import annotations

DECAY = 0.96
PRIOR_STRENGTH = 3.0
_RESCALE = 1e9
NEGLIGIBLE = 0.005
"""Depths reached less often than this count as never reached."""


class Acceptance:
    """Estimates for one source. ``prior``: share of drafts expected to be accepted before anything was seen."""

    __slots__ = ("_expected", "_hits", "_misses", "_sum_hits", "_sum_misses", "_unit", "prior")

    def __init__(self, prior: float) -> None:
        self.prior = prior
        # Instead of shrinking all the past, the present grows: an observation weighs `_unit`.
        self._unit = 1.0
        self._hits: list[float] = []
        self._misses: list[float] = []
        self._sum_hits = 0.0
        self._sum_misses = 0.0
        self._expected = [0.0]

    def observe(self, drafted: int, accepted: int) -> None:
        """Of a chain of ``drafted`` tokens ``accepted`` were; equal numbers mean that nothing was rejected."""
        if drafted <= 0:
            return
        self.age(1)
        hits, misses, unit = self._hits, self._misses, self._unit
        while len(hits) < min(drafted, accepted + 1):
            hits.append(0.0)
            misses.append(0.0)
        for i in range(accepted):
            hits[i] += unit
        self._sum_hits += accepted * unit
        if accepted < drafted:
            misses[accepted] += unit
            self._sum_misses += unit

    def age(self, observations: float) -> None:
        """Forget as much as ``observations`` new ones would make us forget."""
        self._unit /= DECAY**observations
        self._expected = [0.0]
        if self._unit > _RESCALE:
            self._hits = [value / self._unit for value in self._hits]
            self._misses = [value / self._unit for value in self._misses]
            self._sum_hits /= self._unit
            self._sum_misses /= self._unit
            self._unit = 1.0

    @property
    def pool(self) -> float:
        """Chance that a draft is accepted whose depth is not known, given that those before it were."""
        lean = PRIOR_STRENGTH * self._unit
        return (self._sum_hits + lean * self.prior) / (self._sum_hits + self._sum_misses + lean)

    def expected(self, most: int) -> list[float]:
        """E[k], the drafts accepted on average of a chain of k, for k = 0, 1, ... up to ``most`` (or beyond).

        The list is kept until the next observation.
        """
        expected = self._expected
        if len(expected) > most:
            return expected
        lean, pool, seen = PRIOR_STRENGTH * self._unit, self.pool, len(self._hits)
        survival, total = 1.0, 0.0
        expected = [0.0]
        for i in range(most):
            if i < seen:
                hits = self._hits[i]
                survival *= (hits + lean * pool) / (hits + self._misses[i] + lean)
            else:
                survival *= pool
            if survival < NEGLIGIBLE:
                break
            total += survival
            expected.append(total)
        expected += [total] * (most + 1 - len(expected))
        self._expected = expected
        return expected
