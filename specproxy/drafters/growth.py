"""How a drafter with logits grows its drafts: level by level, chains and trees alike.

Each level runs the frontier of every row through the drafter, draws from its logits with the row's own processors and
noise (coupled drafting: Daliri, Musco, Suresh, arXiv 2408.07978), and judges each child's chance of acceptance by how
clearly it was drawn. A tree expands its likeliest nodes (EAGLE-2: Li et al., arXiv 2406.16858) and keeps the best of
all levels: a row's width bounds the children of a node and the nodes of a level that are expanded. A chain is the tree
of width 1.

Shapes: N nodes that are run, R rows, V ids of the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from specproxy.drafters.base import ROOT, DraftBatch, DraftContext, DraftRow
from specproxy.drafters.calibration import Calibration
from specproxy.sampling.sampler import Row, propose_rows

Draw = Literal["coupled", "greedy"]
"""How a token is taken from a drafter's logits: with the noise of the target's own draw, or the likeliest one. Greedy
drafts of sampled text are accepted less often (``specproxy bench --coupling`` measures by how much)."""


class Ask(NamedTuple):
    """A drafted node to run: ``token``, ``depth`` (1 for a child of the root) and which of the row's nodes that were
    run before is its parent, in the order in which they were (ROOT: the last committed token)."""

    row: DraftRow
    token: int
    depth: int
    parent: int


class Source(Protocol):
    """What gives the logits."""

    def catch_up(self, rows: Sequence[DraftRow]) -> Tensor:
        """Take in what is committed; logits [R, V] behind each row's last token."""
        ...

    def extend(self, nodes: Sequence[Ask]) -> Tensor:
        """Run one level; nodes of a row stand side by side. Logits [N, V] behind each node."""
        ...


@dataclass(slots=True)
class Tree:
    """The draft of one row while it grows. Parallel lists over nodes, parents before children: ``chances`` that the
    node and all above it are accepted, ``margins`` it was drawn with. ``asked``: order in which a node was run."""

    row: DraftRow
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    asked: dict[int, int] = field(default_factory=lambda: {ROOT: ROOT})
    frontier: list[int] = field(default_factory=list)

    def path(self, node: int) -> list[int]:
        """Tokens from the root's child down to ``node``."""
        tokens: list[int] = []
        while node != ROOT:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tokens[::-1]

    def add(self, parent: int, tokens: Sequence[int], margins: Sequence[float], calibration: Calibration) -> list[int]:
        """Children of a node, likeliest first; their numbers."""
        greedy = self.row.sampler.noise is None
        above = 1.0 if parent == ROOT else self.chances[parent]
        depth = 1 if parent == ROOT else self.depths[parent] + 1
        start = len(self.tokens)
        for token, margin in zip(tokens, margins, strict=True):
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(depth)
            self.chances.append(above * calibration.probability(margin, greedy))
            self.margins.append(margin)
        return list(range(start, len(self.tokens)))

    def best(self, most: int) -> list[int]:
        """The likeliest nodes, in order of their numbers: with a node come all above it, whose chances are as high.

        A node that is not worth its row in the target's step stays out, where the row says what one is worth.
        """
        order = sorted(range(len(self.tokens)), key=lambda i: (-self.chances[i], i))[:most]
        kept = [i for i in order if self.chances[i] >= self.row.keep or self.depths[i] <= self.row.least]
        chosen = set(kept)
        return sorted(i for i in kept if self.parents[i] == ROOT or self.parents[i] in chosen)


@dataclass(frozen=True)
class Drawn:
    """What is remembered of a draft until its outcome is known: tokens, parents, margins of its nodes."""

    parents: list[int]
    margins: list[float]


class Grower:
    """Grows drafts from a source's logits and learns how far its margins can be trusted."""

    def __init__(self, source: Source, draw: Draw = "coupled") -> None:
        self._coupled = draw == "coupled"
        self._source = source
        self._calibration = Calibration()
        self._drawn: dict[str, Drawn] = {}

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        """Drafts of at most ``row.k`` levels and ``row.room`` nodes for every row that may draft.

        A row stops early where the chance that its likeliest leaf is accepted falls below ``row.floor``.
        """
        active = [(i, Tree(row)) for i, row in enumerate(ctx.rows) if row.k > 0]
        if not active:
            return
        growing = [tree for _, tree in active]
        logits = self._source.catch_up([tree.row for tree in growing])
        asked = [(tree, ROOT) for tree in growing]
        while True:
            self._draw(logits, asked)
            asks, asked = [], []
            for tree in growing:
                for node in self._frontier(tree):
                    parent = tree.asked[tree.parents[node]]
                    asks.append(Ask(tree.row, tree.tokens[node], tree.depths[node], parent))
                    asked.append((tree, node))
                    tree.asked[node] = len(tree.asked) - 1
            if not asks:
                break
            growing = list({id(tree): tree for tree, _ in asked}.values())
            logits = self._source.extend(asks)
        for i, tree in active:
            self._write(i, tree, out)

    def _draw(self, logits: Tensor, asked: Sequence[tuple[Tree, int]]) -> None:
        """Children of the nodes that were run."""
        rows = []
        for tree, node in asked:
            path = tree.path(node)
            rows.append(Row(tree.row.sampler, path, len(tree.row.tokens) + len(path)))
            tree.frontier = []
        drawn = propose_rows(logits, rows, max(tree.row.width for tree, _ in asked), coupled=self._coupled)
        for (tree, node), tokens, margins in zip(asked, drawn.tokens, drawn.margins, strict=True):
            count = tree.row.width
            tree.frontier += tree.add(node, tokens[:count], margins[:count], self._calibration)

    def _frontier(self, tree: Tree) -> list[int]:
        """Nodes of the last level to expand, in order."""
        row, level = tree.row, tree.frontier
        if not level or tree.depths[level[0]] >= row.k or len(tree.asked) > row.room:
            return []
        width = min(row.width, row.room + 1 - len(tree.asked))
        chosen = sorted(level, key=lambda i: (-tree.chances[i], i))[:width]
        if tree.depths[level[0]] >= row.least:
            chosen = [i for i in chosen if tree.chances[i] >= row.floor]
        return sorted(chosen)

    def _write(self, i: int, tree: Tree, out: DraftBatch) -> None:
        nodes = tree.best(min(tree.row.room, out.tokens.shape[1]))
        number = {ROOT: ROOT} | {node: at for at, node in enumerate(nodes)}
        parents = [number[tree.parents[node]] for node in nodes]
        out.put_tree(i, [tree.tokens[node] for node in nodes], parents)
        self._drawn[tree.row.seq_id] = Drawn(parents, [tree.margins[node] for node in nodes])

    def commit(self, ctx: DraftContext) -> None:
        """Every child of a node on the accepted path was tried; those behind a rejected one were not."""
        for row in ctx.rows:
            drawn = self._drawn.pop(row.seq_id, None)
            if drawn is None:
                continue
            greedy, right = row.sampler.noise is None, set(row.path)
            reached = right | {ROOT}
            for node, (parent, margin) in enumerate(zip(drawn.parents, drawn.margins, strict=True)):
                if parent in reached:
                    self._calibration.observe(margin, greedy, node in right)

    def forget(self, seq_id: str) -> None:
        """The sequence is gone."""
        self._drawn.pop(seq_id, None)
