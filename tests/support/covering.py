"""Pairwise covering arrays: few cases in which every two values of every two axes meet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any


def pairwise(axes: Mapping[str, Sequence[Any]], seed: int = 0, tries: int = 50) -> list[dict[str, Any]]:
    """Cases covering every pair of values of two axes, built greedily; deterministic for a seed."""
    names = list(axes)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(range(len(names)), 2)
        for i in range(len(axes[names[a]]))
        for j in range(len(axes[names[b]]))
    }
    rng, cases = random.Random(seed), []
    while missing:
        best, gain = None, -1
        start = min(missing)
        for _ in range(tries):
            row = [rng.randrange(len(axes[n])) for n in names]
            row[start[0]], row[start[2]] = start[1], start[3]
            covered = sum(pair in missing for pair in _pairs(row))
            if covered > gain:
                best, gain = row, covered
        missing.difference_update(_pairs(best))
        cases.append({n: axes[n][i] for n, i in zip(names, best, strict=True)})
    return cases


def _pairs(row: Sequence[int]) -> list[tuple[int, int, int, int]]:
    return [(a, row[a], b, row[b]) for a, b in itertools.combinations(range(len(row)), 2)]
