"""The independent path: transformers' own module, attention and cache, over tokens that are known.

Nothing of the engine's computes here: no kernel, no page, no step. What it shares with the engine are the weights.

Shapes: N rows, V width of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

CHUNK = 64
"""Tokens of one forward: what somebody else may have to wait for."""


class StockPass:
    """A teacher-forced pass over ``ids``, a chunk at a time. The logits of row i are those of the token behind ids[i];
    they are wanted from row ``first`` on."""

    def __init__(self, stock: Any, ids: Sequence[int], first: int, chunk: int = CHUNK) -> None:
        self._stock = stock
        self._ids = ids
        self._first = first
        self._chunk = chunk
        self._cache: Any = None
        self._done = 0

    @property
    def done(self) -> bool:
        """Whether every row was computed."""
        return self._done >= len(self._ids)

    def step(self) -> Tensor:
        """The next chunk; its wanted logits [N, V] in float32, in the host's memory."""
        start, stop = self._done, min(self._done + self._chunk, len(self._ids))
        wanted = stop - max(start, min(self._first, stop))
        ids = torch.tensor([self._ids[start:stop]], device=self._stock.device)
        with torch.no_grad(), own_attention(self._stock):
            # One row at least: to transformers 0 means all of them.
            result = self._stock(
                input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=max(1, wanted)
            )
        self._cache, self._done = result.past_key_values, stop
        # The copy also waits for the device, so that the time of a chunk can be measured around it.
        logits: Tensor = result.logits[0].float().cpu()
        return logits[len(logits) - wanted :]


@contextmanager
def own_attention(stock: Any) -> Iterator[None]:
    """Inside this block the module computes attention as transformers has it: SDPA, or eagerly where it has none."""
    before = stock.config._attn_implementation  # noqa: SLF001 - set_attn_implementation has no getter
    wanted = "sdpa" if stock._supports_sdpa else "eager"  # noqa: SLF001 - the only flag there is
    if before == wanted:
        yield
        return
    stock.set_attn_implementation(wanted)
    try:
        yield
    finally:
        stock.set_attn_implementation(before)
