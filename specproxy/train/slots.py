"""Keys and values of many sequences in buffers of fixed size, for answering prompts with transformers' own modules.

transformers' growing cache copies every layer each step, and its attention repeats keys and values for each query
head. Here a step writes one column and reads views; the query heads of a KV head are taken for a short sequence of
queries, which any attention kernel reads keys once for.

Shapes: B rows, M columns, Hkv KV heads, G query heads a KV head, W head width, P prompt columns, n columns looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "specproxy_grouped"
WINDOW = 64
"""Columns looked at are a multiple of this: every size of tensor that is new costs the allocator a search."""


@dataclass
class Cursor:
    """Where the next call writes (``rows``, from ``column``), and how many columns it ``sees``. Layers share one."""

    width: int
    rows: slice = field(default_factory=lambda: slice(None))
    column: int = 0
    sees: int = 0

    def prompt(self, rows: slice, width: int) -> None:
        """The next call computes the prompts of ``rows``, ``width`` columns."""
        self.rows, self.column, self.sees = rows, 0, width

    def token(self, column: int) -> None:
        """The next call computes one token of every row, at ``column``."""
        sees = min(self.width, -(-(column + 1) // WINDOW) * WINDOW)
        self.rows, self.column, self.sees = slice(None), column, sees


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
    """One layer's keys and values [B, Hkv, M, W]."""

    def __init__(self, cursor: Cursor, count: int) -> None:
        super().__init__()
        self._cursor = cursor
        self._count = count

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Zeros: what is masked out must not be NaN."""
        shape = (self._count, key_states.shape[1], self._cursor.width)
        self.keys = key_states.new_zeros(*shape, key_states.shape[3])
        self.values = value_states.new_zeros(*shape, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write where the cursor stands; views of what it sees."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cursor = self._cursor
        columns = slice(cursor.column, cursor.column + key_states.shape[2])
        self.keys[cursor.rows, :, columns] = key_states
        self.values[cursor.rows, :, columns] = value_states
        return self.keys[cursor.rows, :, : cursor.sees], self.values[cursor.rows, :, : cursor.sees]

    def keep(self, rows: Tensor) -> None:
        """Only these rows."""
        self.keys, self.values = self.keys[rows], self.values[rows]

    def get_seq_length(self) -> int:
        """Columns before the next write."""
        return self._cursor.column

    def get_mask_sizes(self, _query_length: int) -> tuple[int, int]:
        """Columns looked at, from the first."""
        return self._cursor.sees, 0

    def get_max_length(self) -> int:
        """M."""
        return self._cursor.width


class Slots(Cache):  # type: ignore[misc]  # transformers is untyped
    """The layers of one batch. ``cursor`` is to be set before every call of the model."""

    def __init__(self, layers: int, rows: int, columns: int) -> None:
        self.cursor = Cursor(columns)
        super().__init__(layers=[SlotLayer(self.cursor, rows) for _ in range(layers)])

    def keep(self, rows: Tensor) -> None:
        """Only these rows of every layer."""
        for layer in self.layers:
            layer.keep(rows)


@contextlib.contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Within: the model computes one token's attention without repeating keys and values."""
    before = model.config._attn_implementation  # noqa: SLF001 - transformers has no other name for it
    AttentionInterface.register(ATTENTION, attend_grouped)
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend_grouped(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [B, Hkv * G, T, W], key and value [B, Hkv, n, W], mask bool [B, 1, T, n]
    -> [B, T, Hkv * G, W]."""
    rows, heads, length, width = query.shape
    if length > 1:
        mixed: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)[0]
        return mixed, None
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    mask = attention_mask.expand(rows, key.shape[1], grouped.shape[2], key.shape[2])
    mixed = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return mixed.reshape(rows, 1, heads, -1), None
