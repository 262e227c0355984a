"""Whether a served token is the recomputed one, or could be under logits that differ in their last bits.

The stock path and the engine round differently: every raw logit of one lies within eps of the other's. A served token
is *explained* if it passes what any such logits that return it must pass:

    it is among the ids that the cut-offs possibly keep, and
    no id that they surely keep has a higher perturbed score, whichever way both err.

Everything between raw logits and perturbed scores is increasing in each logit (penalties, bias, temperature, noise), in
float32 too. So the processors themselves, run on x - eps and on x + eps, give the bounds of every score, and nothing of
them is modelled here. Without cut-offs the condition is exact: the served token's logit up by eps and all others down
by eps is the witness. With cut-offs it is necessary, and may explain a little more than there is a witness for.

Shapes: V ids.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from specproxy.kernels.sample import Cut, winners_host
from specproxy.sampling.sampler import Sampler

NOISE_ROUNDING = np.float32(2.0**-21)
"""Logarithms of another kind of device may differ by some units in the last place; noise may by this share of
1 + |noise|."""

MASS_ROUNDING = 1e-5
"""Probability mass is summed in float64 here, by the sampler in whole numbers from float32 exponentials."""


class Judgement(NamedTuple):
    """``expected``: the recomputed token, ``None`` where the logits hold NaN. Scores as in ``bundle.Finding``;
    ``margin``: of the best one over the second. ``explained``: the served token is another one, and a near-tie."""

    expected: int | None
    expected_score: float
    served_score: float
    margin: float
    explained: bool = False


def judge(x: np.ndarray, served: int, sampler: Sampler, position: int, eps: float) -> Judgement:
    """Judge the token ``served`` at ``position`` by the reference's raw logits x[V] float32, V being the ids that the
    tokenizer knows. ``sampler`` stands behind the tokens before it, on the CPU."""
    processed = sampler.process(x, ())
    noise = None if sampler.noise is None else sampler.noise.row(position).numpy()[: len(x)]
    best = winners_host(processed, noise, sampler.cut, 2)
    expected: int | None = best.ids[0]
    score = best.scores[0]
    if math.isnan(score):
        return Judgement(None, score, score, 0.0)
    if score == -math.inf:
        expected = sampler.lowest_allowed(())
    margin = score - best.scores[1] if len(best.scores) > 1 else math.inf
    if expected == served:
        return Judgement(expected, score, score, margin)
    if not 0 <= served < len(x):
        return Judgement(expected, score, -math.inf, margin)
    scores = processed if noise is None else _divide(processed, sampler.cut) + noise
    return Judgement(expected, score, float(scores[served]), margin, _possible(x, served, sampler, noise, eps))


def _possible(x: np.ndarray, served: int, sampler: Sampler, noise: np.ndarray | None, eps: float) -> bool:
    """Whether logits within ``eps`` of ``x`` may return ``served``."""
    error = np.float32(eps)
    low = sampler.process(np.nextafter(x - error, np.float32(-np.inf)), ())
    high = sampler.process(np.nextafter(x + error, np.float32(np.inf)), ())
    if high[served] == -np.inf:
        return False
    if noise is None:
        return not bool(_threats(low, high, served).any())
    z_low, z_high = _divide(low, sampler.cut), _divide(high, sampler.cut)
    spread = NOISE_ROUNDING * (1 + np.abs(noise))
    score_low, score_high = z_low + noise - spread, z_high + noise + spread
    if not (math.isfinite(score_low.max()) and math.isfinite(score_high.max())):
        return not bool(_threats(low, high, served).any())  # where the division overflows the sampler takes the argmax
    threats = _threats(score_low, score_high, served)
    if not threats.any():
        return cutoffs_may_keep(z_low, z_high, served, sampler.cut)
    surely = cutoffs_surely_keep(z_low, z_high, sampler.cut)
    return not bool((surely & threats).any()) and cutoffs_may_keep(z_low, z_high, served, sampler.cut)


def _threats(low: np.ndarray, high: np.ndarray, served: int) -> np.ndarray:
    """bool[V]: ids that beat ``served`` even if both err in its favour; ties go to the lowest id."""
    beaten: np.ndarray = low > high[served]
    beaten[:served] |= low[:served] == high[served]
    return beaten


def cutoffs_may_keep(low: np.ndarray, high: np.ndarray, i: int, cut: Cut) -> bool:
    """Whether the cut-offs keep id ``i`` for some z with low[V] <= z[V] <= high[V] (logits over temperature).

    Best for ``i`` is: itself as high, and whoever is surely before it as low as possible; of the others as much mass
    behind it as there can be.
    """
    before = low > high[i]
    count = int(before.sum())
    if count == 0:
        return True
    if 0 < cut.top_k <= count:
        return False
    top = high.max()
    mass_low, mass_high = _mass(low, top), _mass(high, top)
    if cut.top_p < 1.0:
        behind = np.minimum(mass_high, mass_high[i])[~before]
        behind = np.sort(behind)[::-1][: cut.top_k - count if cut.top_k > 0 else None]
        ahead = mass_low[before].sum()
        # Of the mass that is kept so far, what lies behind i counts too; i itself is the largest entry of it.
        if ahead >= cut.top_p * (ahead + behind.sum()) * (1 + MASS_ROUNDING):
            return False
    return cut.min_p <= 0.0 or float(mass_high[i] / mass_low.max()) >= cut.min_p * (1 - MASS_ROUNDING)


def cutoffs_surely_keep(low: np.ndarray, high: np.ndarray, cut: Cut) -> np.ndarray:
    """bool[V]: ids that the cut-offs keep for every z with low[V] <= z[V] <= high[V].

    Worst for an id is: itself as low, whoever may be before it as high, and the others as low as possible.
    """
    order = np.argsort(high, kind="stable")
    behind = np.searchsorted(high[order], low, side="left")
    ahead_count = len(low) - behind - 1  # all that reach up to an id's low, but itself
    kept = np.ones(len(low), np.bool_)
    if cut.top_k > 0:
        kept &= ahead_count < cut.top_k
    top = high.max()
    mass_low, mass_high = _mass(low, top), _mass(high, top)
    if cut.top_p < 1.0:
        sums_high = np.concatenate([[0.0], mass_high[order].cumsum()])
        sums_low = np.concatenate([[0.0], (mass_low * kept)[order].cumsum()])
        ahead = sums_high[-1] - sums_high[behind] - mass_high
        whole = ahead + mass_low + sums_low[behind]
        kept &= (ahead_count == 0) | (ahead < cut.top_p * whole * (1 - MASS_ROUNDING))
    if cut.min_p > 0.0:
        kept &= (ahead_count == 0) | (mass_low >= cut.min_p * (1 + MASS_ROUNDING))
    return kept


def _mass(z: np.ndarray, top: np.float32) -> np.ndarray:
    mass: np.ndarray = np.exp(z.astype(np.float64) - float(top))
    return mass


def _divide(x: np.ndarray, cut: Cut) -> np.ndarray:
    """Logits over temperature, as the sampler divides."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        z: np.ndarray = x / np.float32(cut.temperature)
    return z
