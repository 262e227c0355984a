"""What a step yields: expected tokens per second, as a function of who drafts how much with what."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from specproxy.engine.costs import CostTable
from specproxy.vocabulary import MAX_TREE_NODES

LADDER = (*range(9), 10, 12, 16, 24, 32, 48)


@lru_cache(maxsize=4096)
def lengths(low: int, high: int) -> tuple[int, ...]:
    """Values of K that are weighed between two bounds, these included: all small ones, some of the large.

    The best K is a flat optimum, so that rounding a long draft costs next to nothing.
    """
    return tuple(sorted({low, *(k for k in LADDER if low < k < high), high}))


class Offer(NamedTuple):
    """A drafter for one row, with bounds on K.

    ``lengths``: K to choose from, rising, 1 or more. ``expected[k]``: tokens accepted on average of k levels drafted.
    ``spread``: rows of the step that a level takes on average; ``nodes``: those of all levels, at most.
    ``debt``: seconds that the drafter needs before it can draft at all, to be earned over so many steps as ``term``.
    ``known``: the guess exists, so that only the target's rows cost. ``sticky``: the K chosen last time, if this
    drafter was (-1: another was), for hysteresis.
    """

    drafter: str
    bucket: int
    known: bool
    lengths: tuple[int, ...]
    expected: list[float]
    sticky: int
    spread: float = 1.0
    nodes: int = MAX_TREE_NODES
    debt: float = 0.0
    term: float = 1.0

    def rows(self, k: int) -> int:
        """Rows of the step that ``k`` levels take."""
        return k if self.spread == 1.0 else max(k, min(self.nodes, round(k * self.spread)))


@dataclass(slots=True)
class Pick:
    """One row's part of the step: ``k`` drafts of ``offer``; ``None`` runs plain. ``rate`` as it was picked."""

    offer: Offer | None = None
    k: int = 0
    rate: float = 0.0

    @property
    def rows(self) -> int:
        """Rows of the step that the drafts take."""
        return 0 if self.offer is None else self.offer.rows(self.k)

    @property
    def gain(self) -> float:
        """Drafts expected to be accepted."""
        return 0.0 if self.offer is None else self.offer.expected[self.k]


@dataclass(slots=True)
class StepLoad:
    """A step as planned so far. ``rows`` of the target, ``tokens`` it is expected to yield, lengths of the chains that
    each drafter drafts for it, sequences whose drafts branch. ``plain`` (all sequences, no drafts) starts with one of
    each per sequence."""

    costs: CostTable
    rows: int
    tokens: float
    chains: dict[str, list[int]] = field(default_factory=dict)
    trees: int = 0

    @classmethod
    def plain(cls, costs: CostTable, sequences: int) -> StepLoad:
        """``sequences`` rows without drafts."""
        return cls(costs, sequences, float(sequences))

    def add(self, pick: Pick) -> None:
        """A row drafts as picked."""
        self._change(pick, 1)
        if pick.offer is not None and not pick.offer.known:
            self.chains.setdefault(pick.offer.drafter, []).append(pick.k)

    def remove(self, pick: Pick) -> None:
        """Undo ``add``."""
        self._change(pick, -1)
        if pick.offer is not None and not pick.offer.known:
            self.chains[pick.offer.drafter].remove(pick.k)

    def _change(self, pick: Pick, sign: int) -> None:
        self.rows += sign * pick.rows
        self.tokens += sign * pick.gain
        self.trees += sign * (pick.rows > pick.k)

    def rate(self) -> float:
        """Tokens per second as planned."""
        return self.tokens / (self._step() + self._other_chains(""))

    def seconds(self, pick: Pick) -> float:
        """Duration of the step with one more row drafting as picked, all that its drafter must take in included."""
        self.add(pick)
        seconds = self._step() + self._other_chains("")
        self.remove(pick)
        return seconds if pick.offer is None else seconds + pick.offer.debt

    def best(self, offer: Offer, times: int, hysteresis: float) -> Pick:
        """The K of ``offer`` with the highest rate, if ``times`` more rows drafted like this one.

        The K that stands in ``sticky`` has its rate multiplied by ``hysteresis``.
        """
        step, chain = self.costs.step, self.costs.chain
        known, drafter, expected, sticky = offer.known, offer.drafter, offer.expected, offer.sticky
        mine = () if known else self.chains.get(drafter, ())
        company, deepest = len(mine) + times, max(mine, default=0)
        other = self._other_chains("" if known else drafter) if self.chains else 0.0
        other += offer.debt / offer.term
        rows, tokens = self.rows, self.tokens
        most = tokens + times * expected[offer.lengths[-1]]
        best_k, best_rate = 0, 0.0
        for k in offer.lengths:
            nodes = offer.rows(k)
            seconds = step(rows + times * nodes)
            if self.trees or nodes > k:
                seconds *= self.costs.tree
            seconds += other
            if not known:
                seconds += chain(drafter, company, k if k > deepest else deepest)
            rate = (tokens + times * expected[k]) / seconds
            if k == sticky:
                rate *= hysteresis
            if rate > best_rate:
                best_k, best_rate = k, rate
            elif k > sticky and most < best_rate * seconds:
                break  # longer ones cost more and yield at most this
        return Pick(offer, best_k, best_rate)

    def _step(self) -> float:
        """Seconds of the target's step as planned."""
        return self.costs.step(self.rows) * (self.costs.tree if self.trees else 1.0)

    def _other_chains(self, drafter: str) -> float:
        """Seconds of all chains but those of ``drafter``."""
        total = 0.0
        for name, lengths in self.chains.items():
            if lengths and name != drafter:
                total += self.costs.chain(name, len(lengths), max(lengths))
        return total
