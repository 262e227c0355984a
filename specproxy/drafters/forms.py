"""The form of a draft tree before its tokens are known: which nodes there are, and where they hang.

A drafter that says how likely the best, the second best, ... candidate of each level is has a best form for any number
of nodes: the likeliest paths (Medusa: Cai et al., arXiv 2401.10774, section 2.3.3). A chain is the form of width 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from specproxy.drafters.base import ROOT


@dataclass(frozen=True)
class Form:
    """Of each node its parent (ROOT: the last committed token), its rank among what is drawn at the parent (0: the
    best) and its level (0: a child of the root). Parents stand before children, likelier nodes before others."""

    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    levels: tuple[int, ...]

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
        nodes = [[] for _ in range(self.depth)]  # type: list[list[int]]
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
