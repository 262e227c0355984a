"""What a step costs on this machine: seconds by width, measured at warm-up and corrected while serving.

Two kinds of cost: a step of the target by its rows (tokens of all sequences), and a chain of a drafter by its rows
(sequences drafting together) and length. Wider never counts as cheaper: measurements that say so are averaged with
their neighbours. Between measured widths costs run straight; a step beyond the widest one is split into several.

Corrections are slow and robust. A *drift* common to everything follows the machine (another load, another clock rate,
longer contexts); each measured width has a correction of its own, slower still. An observation moves them by at most
its clipped logarithmic error, so that one long pause means little.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

DRIFT_RATE = 0.05
POINT_RATE = 0.02
CLIP = 0.3
"""Largest believed error of one observation, as a natural logarithm."""
REFRESH = 32
"""Observations between two refreshes of a curve's corrected points."""


def rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing sequence closest to ``values`` in weighted squares (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        count = 1
        while pools and pools[-1][0] > value:
            other, mass, members = pools.pop()
            value = (other * mass + value * weight) / (mass + weight)
            weight += mass
            count += members
        pools.append((value, weight, count))
    return [value for value, _, count in pools for _ in range(count)]


class Curve:
    """Seconds by an integer width, never falling, through points that observations may move.

    ``points``: width (1 or more) -> seconds (above 0). Below the first point the cost is the first one's; beyond the
    last, the last two points are continued.
    """

    def __init__(self, points: Mapping[int, float]) -> None:
        if not points or min(points) < 1 or min(points.values()) <= 0:
            raise ValueError(f"expected widths of at least 1 with seconds above 0, got {dict(points)}")
        self.widths = sorted(points)
        self._measured = [points[width] for width in self.widths]
        self._error = [0.0] * len(self.widths)
        self._weight = [1.0] * len(self.widths)
        self._seconds: list[float] = []
        self._since = 0
        self._refresh()

    def at(self, width: int) -> float:
        """Seconds at ``width``."""
        if width <= self.widths[-1]:
            return sum(share * self._seconds[i] for i, share in self._shares(width))
        if len(self.widths) == 1:
            return self._seconds[0]
        slope = (self._seconds[-1] - self._seconds[-2]) / (self.widths[-1] - self.widths[-2])
        return self._seconds[-1] + slope * (width - self.widths[-1])

    def correct(self, width: int, error: float) -> bool:
        """``error``: logarithm of observed over expected seconds at ``width``, clipped by the caller.

        True every REFRESH times, when the corrections have taken effect.
        """
        for i, share in self._shares(width):
            self._error[i] += POINT_RATE * share * error
            self._weight[i] += share
        self._since += 1
        if self._since < REFRESH:
            return False
        self._refresh()
        return True

    def _refresh(self) -> None:
        seconds = [m * math.exp(e) for m, e in zip(self._measured, self._error, strict=True)]
        self._seconds = rising(seconds, self._weight)
        self._since = 0

    def _shares(self, width: int) -> list[tuple[int, float]]:
        """Indices of the points around ``width``, with how much each of them determines its cost."""
        right = bisect_left(self.widths, width)
        if right == len(self.widths):
            return [(right - 1, 1.0)]
        if right == 0 or self.widths[right] == width:
            return [(right, 1.0)]
        part = (width - self.widths[right - 1]) / (self.widths[right] - self.widths[right - 1])
        return [(right - 1, 1.0 - part), (right, part)]


class CostTable:
    """Costs in seconds.

    ``steps``: rows -> seconds of one step of the target, up to the widest step it takes. ``chains``: drafter ->
    {(rows, k): seconds} of drafting k tokens in each of ``rows`` sequences at once; a drafter without an entry
    (prompt lookup and its like) costs nothing. ``tree``: how many times as long a step takes whose drafts branch, of
    as many rows: their keys are gathered path by path.
    """

    def __init__(
        self,
        steps: Mapping[int, float],
        chains: Mapping[str, Mapping[tuple[int, int], float]] | None = None,
        tree: float = 1.0,
    ) -> None:
        self._steps = Curve(steps)
        self._tree = math.log(max(1.0, tree))
        self._chains: dict[str, dict[int, Curve]] = {}
        self._catch_up: dict[str, float] = {}
        self._drift = 0.0
        # The controller asks for the same few costs thousands of times between two corrections.
        self._step_cache: dict[int, float] = {}
        self._chain_cache: dict[tuple[str, int, int], float] = {}
        for name, points in (chains or {}).items():
            self.set_chain(name, points)

    def set_chain(self, drafter: str, points: Mapping[tuple[int, int], float], catch_up: float = 0.0) -> None:
        """A drafter was loaded and measured: {(rows, k): seconds}; ``catch_up``: seconds for each token that it has
        not taken in when it is asked."""
        self._catch_up[drafter] = catch_up
        by_rows: dict[int, dict[int, float]] = {}
        for (rows, k), seconds in points.items():
            by_rows.setdefault(rows, {})[k] = seconds
        self._chains[drafter] = {rows: Curve(by_rows[rows]) for rows in sorted(by_rows)}
        self._chain_cache.clear()

    def drop_chain(self, drafter: str) -> None:
        """A drafter was unloaded."""
        self._chains.pop(drafter, None)
        self._catch_up.pop(drafter, None)
        self._chain_cache.clear()

    @property
    def drift(self) -> float:
        """How much slower than at warm-up the machine is now: a factor."""
        return math.exp(self._drift)

    @property
    def tree(self) -> float:
        """How many times as long a step with trees takes."""
        return math.exp(self._tree)

    def step(self, rows: int) -> float:
        """Seconds of a step of ``rows`` tokens, without drift; several steps where it is wider than the widest."""
        seconds = self._step_cache.get(rows)
        if seconds is None:
            widest = self._steps.widths[-1]
            whole, rest = divmod(rows, widest)
            seconds = whole * self._steps.at(widest) + (self._steps.at(rest) if rest else 0.0)
            self._step_cache[rows] = seconds
        return seconds

    def chain(self, drafter: str, rows: int, k: int) -> float:
        """Seconds for ``drafter`` to draft ``k`` tokens in each of ``rows`` sequences, without drift."""
        seconds = self._chain_cache.get((drafter, rows, k))
        if seconds is None:
            curves = self._chains.get(drafter)
            seconds = 0.0
            if curves is not None and k > 0:
                below, above, part = _around(list(curves), rows)
                seconds = (1.0 - part) * curves[below].at(k) + part * curves[above].at(k)
            self._chain_cache[drafter, rows, k] = seconds
        return seconds

    def catch_up(self, drafter: str, tokens: int) -> float:
        """Seconds for ``drafter`` to take in ``tokens`` before it can draft, without drift."""
        return self._catch_up.get(drafter, 0.0) * tokens

    def observe_step(self, rows: int, seconds: float, tree: bool = False) -> None:
        """A step of ``rows`` tokens took ``seconds``; one that had to be split is reported part by part. ``tree``: some
        of its drafts branch."""
        rows = min(rows, self._steps.widths[-1])
        if tree and rows > 0 and seconds > 0:
            error = math.log(seconds / self.step(rows)) - self._drift - self._tree
            self._tree = max(0.0, self._tree + POINT_RATE * max(-CLIP, min(CLIP, error)))
            return
        if rows > 0 and seconds > 0 and self._steps.correct(rows, self._surprise(self.step(rows), seconds)):
            self._step_cache.clear()

    def observe_chain(self, drafter: str, rows: int, k: int, seconds: float) -> None:
        """Drafting ``k`` tokens in each of ``rows`` sequences took ``seconds``; unknown drafters are ignored."""
        curves = self._chains.get(drafter)
        if curves is None or k <= 0 or seconds <= 0:
            return
        below, above, part = _around(list(curves), rows)
        error = self._surprise(self.chain(drafter, rows, k), seconds)
        if curves[below if part < 0.5 else above].correct(k, error):
            self._chain_cache.clear()

    def _surprise(self, expected: float, seconds: float) -> float:
        """The clipped error of an observation; the drift follows it."""
        error = max(-CLIP, min(CLIP, math.log(seconds / expected) - self._drift))
        self._drift += DRIFT_RATE * error
        return error


def _around(widths: Sequence[int], width: int) -> tuple[int, int, float]:
    """(below, above, share of above): the measured widths around ``width``, the outermost one beyond the ends."""
    right = bisect_left(widths, width)
    if right == len(widths):
        return widths[-1], widths[-1], 0.0
    if right == 0 or widths[right] == width:
        return widths[right], widths[right], 0.0
    below, above = widths[right - 1], widths[right]
    return below, above, (width - below) / (above - below)
