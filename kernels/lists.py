"""Attention as lists: each row's own keys, for code that goes through them row by row.

Row t reads keys 0 .. ``last`` [t] of its list, in the order of their positions: what a tree's row does not descend from
is not in its list. So nothing that another row has can change in which order its sums are made.

Shapes: T rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specproxy.kernels.attention import Span

FAR = 2**62
"""A position that no sequence reaches."""


@dataclass(frozen=True)
class RowLists:
    """Parts of ``numbers`` (int64), each beginning where ``starts`` says, in this order:

    ``table`` [T]: where the row's pages begin in ``pages``, -1 for a row that attends to nothing; ``last`` [T]: its
    last key; ``first`` [T]: keys before are not seen; ``tail_from``, ``tail`` [T]: keys from there on are at the slots
    ``tails[tail]``, ``tails[tail + 1]``, ... instead; ``pages``; ``tails``.
    """

    numbers: Tensor
    starts: tuple[int, ...]


def list_rows(spans: Sequence[Span], rows: int, page_size: int) -> RowLists:
    """The lists of ``spans`` in a step of ``rows`` rows; rows of no span get none."""
    table, last, first, tail_from, tail = [-1] * rows, [0] * rows, [0] * rows, [FAR] * rows, [0] * rows
    pages: list[int] = []
    tails: list[int] = []
    for span in spans:
        start, here = len(pages), span.context + span.before
        pages += span.table[: -(-span.end // page_size)]
        for i in range(span.count):
            row = span.start + i
            table[row], first[row], last[row] = start, span.first, here + i
            if span.words is None:
                continue
            nodes = [j for j in range(span.before + i + 1) if span.words[i] >> j & 1]
            last[row] = span.context + len(nodes) - 1
            if len(nodes) <= nodes[-1]:
                tail_from[row], tail[row] = span.context, len(tails)
                at = [span.context + j for j in nodes]
                tails += [span.table[p // page_size] * page_size + p % page_size for p in at]
    numbers: list[int] = []
    starts = []
    for part in (table, last, first, tail_from, tail, pages, tails):
        starts.append(len(numbers))
        numbers += part
    return RowLists(torch.tensor(numbers), tuple(starts))
