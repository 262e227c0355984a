"""The form of a draft tree before its tokens are known: which nodes there are, and where they hang.

A drafter that says how likely the best, the second best, ... candidate of each level is has a best form for any number
of nodes: the likeliest paths (Medusa: Cai et al., arXiv 2401.10774, section 2.3.3). A chain is the form of width 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from specproxy.drafters.base import ROOT


@dataclass(frozen=True)
class Form:
    """Of each node its parent (ROOT: the last committed token), its rank among what is drawn at the parent (0: the
    best) and its level (0: a child of the root). Parents stand before children, likelier nodes before others."""

    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    levels: tuple[int, ...]

    @property
    def nodes(self) -> list[tuple[int, int, int]]:
        """(parent, rank, level) of each node."""
        return list(zip(self.parents, self.ranks, self.levels, strict=True))

    @property
    def depth(self) -> int:
        """Levels."""
        return max(self.levels) + 1

    @property
    def width(self) -> int:
        """Candidates that are drawn at a node at most."""
        return max(self.ranks) + 1

    @property
    def is_chain(self) -> bool:
        """Whether every node hangs on the one before it."""
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes from the root's child down to it."""
        paths: list[tuple[int, ...]] = []
        for node, parent in enumerate(self.parents):
            paths.append((*(() if parent == ROOT else paths[parent]), node))
        return tuple(paths)

    @cached_property
    def inner(self) -> tuple[tuple[int, ...], ...]:
        """For each level but the last its nodes that have children, in order."""
        parents = set(self.parents)
        nodes: list[list[int]] = [[] for _ in range(self.depth)]
        for node, level in enumerate(self.levels):
            if node in parents:
                nodes[level].append(node)
        return tuple(tuple(level) for level in nodes[:-1])


def chain(k: int) -> Form:
    """``k`` nodes, one below the other."""
    return Form(tuple(range(-1, k - 1)), (0,) * k, tuple(range(k)))


def likeliest(rate: Callable[[int, int], float], levels: int, nodes: int, width: int) -> Form:
    """The form of the ``nodes`` likeliest paths over so many levels and ranks. ``rate(level, rank)``: chance that the
    candidate of that rank is right where all above it are."""
    parents: list[int] = []
    ranks: list[int] = []
    depths: list[int] = []
    queue = [(-rate(0, rank), ROOT, rank) for rank in range(width)]
    heapq.heapify(queue)
    while queue and len(parents) < nodes:
        chance, parent, rank = heapq.heappop(queue)
        level = 0 if parent == ROOT else depths[parent] + 1
        parents.append(parent)
        ranks.append(rank)
        depths.append(level)
        if level + 1 < levels:
            for below in range(width):
                heapq.heappush(queue, (chance * rate(level + 1, below), len(parents) - 1, below))
    return Form(tuple(parents), tuple(ranks), tuple(depths))


class Spot(NamedTuple):
    """Where a drafted token stands, in positions from the last committed token on (0: that one). ``order``: whose slot
    its keys take. ``depth``: its position along its own path. ``path``: the slots of its path from ``start`` on, where
    they are not the next ones in order."""

    order: int
    depth: int
    path: tuple[int, ...] = ()
    start: int = 0


def run_of(ahead: int, count: int) -> tuple[Spot, ...]:
    """``count`` tokens one behind the other."""
    return tuple(Spot(at, at) for at in range(ahead, ahead + count))


def verified_at(form: Form) -> tuple[Spot, ...]:
    """The rows of the target's step: the last committed token and all nodes, in slots of their numbers."""
    spots = [Spot(0, 0)]
    for node, path in enumerate(form.paths):
        slots = (0, *(one + 1 for one in path))
        spots.append(Spot(node + 1, len(path), () if slots == tuple(range(node + 2)) else slots))
    return tuple(spots)


def drafted_at(form: Form) -> list[tuple[Spot, ...]]:
    """The rows of a drafter's own step for each level: nodes that have children, in slots in the order in which they
    are run."""
    ran: dict[int, int] = {}
    levels = []
    for nodes in form.inner:
        spots = []
        for node in nodes:
            ran[node] = len(ran) + 1
            slots = tuple(ran[one] for one in form.paths[node])
            in_order = slots == tuple(range(1, ran[node] + 1))
            spots.append(Spot(ran[node], len(slots), () if in_order else slots, 1))
        levels.append(tuple(spots))
    return levels
