"""Cut-offs and the perturbed argmax: the last steps from processed logits to a token.

For one row of processed logits x[V] (masked ids at -inf), temperature T > 0 and noise g[V], all float32:

    z = x / T                                   order of ids: (z descending, id ascending)
    top_k   keep the first k in that order
    top_p   of those, keep an id while the mass before it is below top_p of their whole mass
    min_p   of those, keep an id whose probability is at least min_p times the best one's
    token = argmax of z + g over what is kept, ties to the lowest id

The best id is always kept. At T = 0 the token is the argmax of x: no cut-off removes it. The same where z has no finite
maximum (a temperature so small that the division overflows, or an infinite logit).

Mass is counted in whole numbers, ``int64(exp(z - max z) * 2**40)``: sums of integers do not depend on their order, so
a row's result depends neither on the other rows nor on how a reduction is split, and the two forms below agree.

Two forms: ``winners_host``, numpy, one row at a time, which a CPU runs; and ``winners``, the batched torch reference
for every device. The host form never sorts the vocabulary. It takes the argmax over everything and asks whether that id
is kept; if not, nothing behind it is either, and it looks again. After ln(1 / kept mass) + 1 looks on average it has
the answer. At V = 8192 that is 5 to 30 us a row, where torch's stable sort alone takes 470 (AMD EPYC Zen 5, one
thread).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

_UNIT = 2.0**40
"""Mass of the best id: 2**22 ids of that mass still fit int64."""

_HOST_UNIT = np.float32(_UNIT)
_NOTHING = np.float32(-np.inf)


class Cut(NamedTuple):
    """Temperature and cut-offs of one row. Off: ``top_k`` 0, ``top_p`` 1, ``min_p`` 0."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class Winners(NamedTuple):
    """Kept ids of one row, best perturbed score first, with the scores.

    Never empty. The first score is NaN where the logits hold NaN, and -inf where all of them are -inf: the id then
    means nothing.
    """

    ids: list[int]
    scores: list[float]


def winners_host(x: np.ndarray, noise: np.ndarray | None, cut: Cut, count: int = 1) -> Winners:
    """The ``count`` best kept ids of one row, fewer where fewer are kept; ``x`` and ``noise`` stay as they are.

    x[V], noise[V] float32; ``noise`` is needed where the temperature is above 0.
    """
    if cut.temperature == 0.0 or noise is None:
        return _greedy(x, count)
    z = x if cut.temperature == 1.0 else _divide(x, cut.temperature)
    scores = z + noise
    best = int(scores.argmax())
    score = float(scores[best])
    if not math.isfinite(score):
        return _greedy(x, count)
    if cut.top_k <= 0 and cut.top_p >= 1.0 and cut.min_p <= 0.0:
        return Winners([best], [score]) if count == 1 else _best(scores, count)
    if not 0 < cut.top_k < len(z):
        return _kept(z, scores, cut, count)
    ids = _first(z, cut.top_k)
    found = _kept(z[ids], scores[ids], cut, count)
    return Winners(ids[found.ids].tolist(), found.scores)


def _divide(x: np.ndarray, temperature: float) -> np.ndarray:
    """The quotient in float32; overflow and 0 / 0 are dealt with by the caller."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        quotient: np.ndarray = x / np.float32(temperature)
    return quotient


def _greedy(x: np.ndarray, count: int) -> Winners:
    """The best ids of the unperturbed row."""
    if count > 1:
        return _best(x.copy(), count)
    best = int(x.argmax())
    return Winners([best], [float(x[best])])


def _best(scores: np.ndarray, count: int) -> Winners:
    """The ``count`` largest of ``scores``, which is used up; -inf only where there is nothing else."""
    ids: list[int] = []
    values: list[float] = []
    for _ in range(min(count, len(scores))):
        best = int(scores.argmax())
        value = float(scores[best])
        if ids and value == -math.inf:
            break
        ids.append(best)
        values.append(value)
        scores[best] = _NOTHING
    return Winners(ids, values)


def _first(z: np.ndarray, k: int) -> np.ndarray:
    """Ascending ids of the first k in the order (z descending, id ascending)."""
    threshold = np.partition(z, len(z) - k)[len(z) - k]
    ids = np.flatnonzero(z >= threshold)
    surplus = len(ids) - k
    return np.delete(ids, np.flatnonzero(z[ids] == threshold)[-surplus:]) if surplus else ids


def first_in_order(z: np.ndarray, k: int) -> np.ndarray:
    """The first k ids in the order (z descending, id ascending)."""
    if k == 0:
        return np.zeros(0, np.int64)
    ids = _first(z, k)
    ordered: np.ndarray = ids[np.argsort(-z[ids], kind="stable")]
    return ordered


def _kept(z: np.ndarray, scores: np.ndarray, cut: Cut, count: int) -> Winners:
    """The ``count`` best ids that top_p and min_p keep; ``scores`` is used up, its maximum is finite."""
    top = int(z.argmax())
    mass: _Mass | None = None
    ids: list[int] = []
    values: list[float] = []
    while len(ids) < count:
        best = int(scores.argmax())
        value = float(scores[best])
        if value == -math.inf:
            break
        if best != top:
            mass = mass or _Mass(z, z[top], cut)
            if not mass.keeps(best):
                scores[z < z[best]] = _NOTHING
                scores[best:][z[best:] == z[best]] = _NOTHING
                continue
        ids.append(best)
        values.append(value)
        scores[best] = _NOTHING
    return Winners(ids, values)


class _Mass:
    """Probability mass of one row in whole numbers, and what top_p and min_p keep of it."""

    def __init__(self, z: np.ndarray, highest: np.float32, cut: Cut) -> None:
        self._z = z
        self._ratio = np.exp(z - highest)
        self._units = (self._ratio * _HOST_UNIT).astype(np.int64)
        self._min_p = np.float32(cut.min_p)
        self._limit = max(1, math.ceil(cut.top_p * int(self._units.sum()))) if cut.top_p < 1.0 else None

    def keeps(self, i: int) -> bool:
        """Whether index ``i`` is kept."""
        if self._ratio[i] < self._min_p:
            return False
        if self._limit is None:
            return True
        z = self._z
        before = int(self._units[z > z[i]].sum())
        ties = int(np.count_nonzero(z[:i] == z[i]))
        return before + ties * int(self._units[i]) < self._limit


def keep_mask(z: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """What the cut-offs keep: bool[N, V] of z[N, V] float32, by a stable sort.

    top_k[N] int64, top_p[N] float64, min_p[N] float32, neutral values as in ``Cut``. A row without a finite maximum
    has no defined answer.
    """
    ordered, order = z.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(z.shape[-1], device=z.device)
    keep = (rank < top_k[:, None]) | (top_k <= 0)[:, None]
    ratio = torch.exp(ordered - ordered[:, :1])
    units = (ratio * _UNIT).to(torch.int64) * keep
    before = units.cumsum(-1) - units
    limit = torch.ceil(top_p * units.sum(-1).double()).to(torch.int64).clamp_(min=1)
    keep &= (before < limit[:, None]) | (top_p >= 1.0)[:, None]
    keep &= ratio >= min_p[:, None]
    return torch.zeros_like(keep).scatter_(-1, order, keep)


def winners(x: torch.Tensor, noise: torch.Tensor, cuts: list[Cut], count: int = 1) -> list[Winners]:
    """``winners_host`` for x[N, V] and noise[N, V] float32 on any device; noise of rows at temperature 0 is unused."""
    top_k = torch.tensor([cut.top_k for cut in cuts], device=x.device)
    top_p = torch.tensor([cut.top_p for cut in cuts], dtype=torch.float64, device=x.device)
    min_p = torch.tensor([cut.min_p for cut in cuts], dtype=torch.float32, device=x.device)
    temperature = torch.tensor([cut.temperature for cut in cuts], dtype=torch.float32, device=x.device)[:, None]
    z = x / temperature
    perturbed = z + noise
    finite = perturbed.amax(-1, keepdim=True).isfinite()
    perturbed = perturbed.masked_fill(~keep_mask(z, top_k, top_p, min_p), -math.inf)
    scores = torch.where(finite & (temperature > 0), perturbed, x)
    columns = [_take_best(scores) for _ in range(min(count, x.shape[-1]))]
    ids = torch.stack([best for best, _ in columns], dim=-1).tolist()
    values = torch.stack([value for _, value in columns], dim=-1).tolist()
    found = [1 + sum(value != -math.inf for value in row[1:]) for row in values]
    return [Winners(i[:n], v[:n]) for i, v, n in zip(ids, values, found, strict=True)]


def _take_best(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index and value of each row's maximum, lowest index first; it is set to -inf in ``scores``."""
    best = scores.argmax(-1, keepdim=True)
    value = scores.gather(-1, best)
    scores.scatter_(-1, best, -math.inf)
    return best[:, 0], value[:, 0]
