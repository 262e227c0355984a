"""A head driven over paged KV whose pages stand in no order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specproxy.heads.base import HeadStep, RecurrentHead
from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention

PAGE = 4
TABLES = ([9, 4, 12, 2, 7, 15, 3, 11], [6, 17, 5, 14, 10, 8, 16, 13])
"""Pages of two sequences, none next to the one before."""


class Run:
    """Keys and values of a head, and how many entries of each module's are there, for two sequences."""

    def __init__(self, head: RecurrentHead, dtype: torch.dtype = torch.float64) -> None:
        self.head = head
        self.kv = KVBuffers.allocate(list(head.spec.layers), 20, PAGE, dtype, "cpu")
        self._done: dict[tuple[int, int], int] = {}

    def step(
        self, ids: Tensor, hidden: Tensor, positions: Tensor, counts: Sequence[int] = (), module: int = 0
    ) -> HeadStep:
        """The next entries: ``counts`` of each sequence, one behind the other (all of the first where not given)."""
        counts = counts or (ids.shape[0],)
        spans, slots, start = [], [], 0
        for sequence, count in enumerate(counts):
            done = self._done.get((sequence, module), 0)
            spans.append(Span(start, count, done, TABLES[sequence]))
            slots += [TABLES[sequence][at // PAGE] * PAGE + at % PAGE for at in range(done, done + count)]
            self._done[sequence, module] = done + count
            start += count
        plan = plan_attention(spans, torch.tensor(slots), self.kv, exact=False)
        return self.head.step(ids, hidden, positions, plan, self.kv, module)
