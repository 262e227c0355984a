"""Paged KV of several sequences, and ragged attention over it, on a device of choice."""

from __future__ import annotations

from typing import Any

import torch

from specproxy.kernels.attention import Scoring, Span
from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.kernels.ragged_attention import RaggedAttention, ragged_reference
from specproxy.kernels.ragged_rows import RaggedRows, RowShape, count_blocks

PAGE = 64


class Field:
    """KV of several sequences in pages out of order, and attention over spans of them."""

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        width: int,
        dtype: torch.dtype,
        pages: int,
        v_width: int = 0,
        device: str = "cpu",
    ) -> None:
        self.heads, self.group, self.width = heads, heads // kv_heads, width
        shape = LayerShape(kv_heads, width, v_width or width)
        self.kv = KVBuffers.allocate([shape], pages, PAGE, dtype, device)
        generator = torch.Generator().manual_seed(3)
        self.kv.layers[0].copy_(torch.randn(self.kv.layers[0].shape, generator=generator))
        self._order = (torch.randperm(pages - 2, generator=generator) + 2).tolist()
        self.queries = torch.randn(4096, heads, width, generator=generator).to(dtype).to(device)
        self.device = device

    def table(self, tokens: int) -> list[int]:
        """Pages for so many tokens."""
        return [self._order.pop() for _ in range(-(-tokens // PAGE))]

    def attend(
        self, spans: list[Span], rows: int, q: torch.Tensor, *, reference: bool = False, **how: Any
    ) -> torch.Tensor:
        """Attention of ``spans`` in a step of ``rows`` rows."""
        blocks = count_blocks([span.count for span in spans], self.group) + 1
        shape = RowShape(rows, blocks, 4, 90)
        host = RaggedRows.allocate(shape, "cpu")
        host.fill(spans, [0] * sum(span.count for span in spans), PAGE, PAGE, self.group)
        ragged = RaggedRows(shape, host.buffer.to(self.device))
        scoring = Scoring(self.width**-0.5, **how)
        if reference:
            return ragged_reference(ragged, self.kv, 0, q, scoring)
        most = max(span.end for span in spans)
        return RaggedAttention(ragged, most).attend(self.kv, 0, q, scoring)


def ancestor_words(parents: list[int]) -> list[int]:
    """Ancestor words of a root and its tree."""
    words = [1]
    for i, parent in enumerate(parents):
        words.append(words[parent + 1] | 1 << (i + 1))
    return words


def path_errors(field: Field, context: int, parents: list[int]) -> list[int]:
    """Nodes of a tree whose bits differ from those of the end of a chain that holds their path's keys in order."""
    words, table = ancestor_words(parents), field.table(context + 8)
    q = field.queries[: len(words)]
    tree = field.attend([Span(0, len(words), context, table, words)], len(words), q)
    plane = field.kv.layers[0]
    chain = field.table(context + 8)
    every = torch.arange(context)
    wrong = []
    for node, word in enumerate(words):
        path = [j for j in range(node + 1) if word >> j & 1]
        plane[:, _slots(chain, every)] = plane[:, _slots(table, every)]
        for depth, j in enumerate(path):
            at = torch.tensor([context + depth]), torch.tensor([context + j])
            plane[:, _slots(chain, at[0])] = plane[:, _slots(table, at[1])]
        span = Span(0, 1, context + len(path) - 1, chain)
        if not torch.equal(field.attend([span], 1, q[node : node + 1])[0], tree[node]):
            wrong.append(node)
    return wrong


def _slots(table: list[int], positions: torch.Tensor) -> torch.Tensor:
    return torch.tensor(table)[positions // PAGE] * PAGE + positions % PAGE
