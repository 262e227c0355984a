"""One ragged step as plain data: a flat list of rows of many sequences.

A rank of a tensor-parallel group can replay it, a graph can copy it. Plain decoding is a row, a draft chain K + 1 rows,
a draft tree its nodes and the root, a prefill chunk a fixed number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from specproxy.drafters.base import ROOT
from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers


@dataclass
class Step:
    """Rows in order: ids, absolute positions, KV slots. ``spans`` cut them into sequences; ``sample`` are the rows
    whose logits are wanted. ``kind`` says how KV comes about: prompt tokens in fixed chunks, all else at decode
    widths."""

    kind: Literal["prefill", "decode"]
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    sample: list[int] = field(default_factory=list)

    def add_chain(
        self, tokens: Sequence[int], context: int, table: Sequence[int], page_size: int, sample_from: int
    ) -> None:
        """A run of tokens at positions ``context`` on; rows from ``sample_from`` (index in the run) on are sampled."""
        start = len(self.ids)
        self.ids += tokens
        end = context + len(tokens)
        self.positions += range(context, end)
        self.slots += [table[p // page_size] * page_size + p % page_size for p in range(context, end)]
        self.spans.append(Span(start, len(tokens), context, table))
        self.sample += range(start + sample_from, start + len(tokens))

    def add_tree(
        self,
        root: int,
        tokens: Sequence[int],
        parents: Sequence[int],
        context: int,
        table: Sequence[int],
        page_size: int,
    ) -> None:
        """A root at position ``context`` and its draft tree; every row is sampled. Nodes take slots in their order."""
        start, count = len(self.ids), len(tokens) + 1
        depths, words = [0], [1]
        for i, parent in enumerate(parents):
            depths.append(depths[parent + 1] + 1)
            words.append(words[parent + 1] | 1 << (i + 1))
        self.ids += [root, *tokens]
        self.positions += [context + d for d in depths]
        self.slots += [table[p // page_size] * page_size + p % page_size for p in range(context, context + count)]
        self.spans.append(Span(start, count, context, table, words))
        self.sample += range(start, start + count)


def prefill_step(
    tokens: Sequence[int],
    base: int,
    start: int,
    end: int,
    table: Sequence[int],
    kv: KVBuffers,
    rows: int,
    trim: int = 0,
) -> Step:
    """The chunk of positions base .. base + rows, ``base`` a multiple of ``rows``; its last real row is sampled.

    Positions before ``start`` (they have KV) and from ``end`` on (not there) are padding: their row exists, at its own
    place, so that a row's bits depend on its position alone, and its KV goes nowhere. With ``trim``, where widths were
    proven not to matter, padding rows are left out down to a multiple of ``trim`` rows.
    """
    stop, size = min(base + rows, end), kv.page_size
    first, last = base, base + rows
    if trim:
        first = start - (start - base) % trim
        last = stop + -(stop - first) % trim
    missing = last - stop
    step = Step("prefill")
    step.ids = [*tokens[first:stop], *[0] * missing]
    step.positions = [*range(first, stop), *[stop - 1] * missing]
    step.slots = [
        table[p // size] * size + p % size if start <= p < stop else kv.trash_slot for p in range(first, last)
    ]
    step.spans = [Span(0, last - first, first, table)]
    step.sample = [stop - 1 - first]
    return step


def is_chain(parents: Sequence[int]) -> bool:
    """Whether a draft tree is a chain in node order."""
    return all(parent == i - 1 for i, parent in enumerate(parents))


def first_chain(parents: Sequence[int]) -> list[int]:
    """Nodes of the preferred path of a tree: from the root to the first child, and so on."""
    path: list[int] = []
    at = ROOT
    for i, parent in enumerate(parents):
        if parent == at:
            path.append(i)
            at = i
    return path
