"""Keys and values in pages: one tensor a layer, a slot a token.

Shapes: T rows, B sequences side by side (lanes), Hk key heads, Dk and Dv head widths, L keys after padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KEY_BLOCK = 128
"""Keys are read in multiples of this many: see ``attention.py``. As long as a prefill chunk, whose rows thus share a
length; half as long would spare a row some keys and cost a batch more calls."""

MAX_VIEWS = 4096
"""Views remembered; making one takes about as long as a small product."""


@dataclass(frozen=True)
class LayerShape:
    """KV of one layer: heads and widths of keys and values."""

    heads: int
    k_dim: int
    v_dim: int

    @property
    def width(self) -> int:
        """Numbers stored per token: all keys, then all values."""
        return self.heads * (self.k_dim + self.v_dim)


class KVBuffers:
    """Paged keys and values of one model: per layer one tensor [slots, width], keys first.

    Slot = page * page_size + offset. Page 0 is never written and stays zero (padding reads it), page 1 takes the
    writes of padding rows. ``KEY_BLOCK`` spare slots at the end let the last page be read with its padding.
    """

    RESERVED_PAGES = 2
    TRASH_SLOT_PAGE = 1

    def __init__(
        self, shapes: Sequence[LayerShape], num_pages: int, page_size: int, dtype: torch.dtype, device: str
    ) -> None:
        if KEY_BLOCK % page_size:
            raise ValueError(f"page_size {page_size} must divide {KEY_BLOCK}")
        self.shapes = list(shapes)
        self.page_size = page_size
        self.num_pages = num_pages
        self.num_slots = num_pages * page_size + KEY_BLOCK
        self.dtype = dtype
        # Zeroed by writing, so that the memory is there from the start and not when a page is first used.
        self.layers = [torch.empty(self.num_slots, s.width, dtype=dtype, device=device).zero_() for s in shapes]
        self._views: dict[tuple[int, int, int, int, int], tuple[Tensor, Tensor]] = {}

    @property
    def trash_slot(self) -> int:
        """Where padding rows write."""
        return self.TRASH_SLOT_PAGE * self.page_size

    def write(self, layer: int, slots: Tensor, rows: Tensor) -> None:
        """Store rows [T, width] (keys, then values) at ``slots`` [T]; what is not finite becomes finite."""
        self.layers[layer].index_copy_(0, slots, torch.nan_to_num(rows))

    def read(
        self, layer: int, first_slot: int, lanes: int, stride: int, keys: int, pages: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Keys [B, Hk, L, Dk] and values [B, Hk, L, Dv] of ``lanes`` sequences, ``keys`` slots each.

        Without ``pages`` they are views: lane b starts ``stride`` slots behind lane b - 1, the first at
        ``first_slot``. With ``pages`` [B * L / page_size] they are gathered.
        """
        if pages is not None:
            by_page = self.layers[layer][: self.num_pages * self.page_size].view(self.num_pages, -1)
            return self._split(layer, by_page.index_select(0, pages).view(-1), 0, lanes, keys, keys)
        key = (layer, first_slot, lanes, stride, keys)
        found = self._views.get(key)
        if found is None:
            if len(self._views) > MAX_VIEWS:
                self._views.clear()
            found = self._views[key] = self._split(layer, self.layers[layer], first_slot, lanes, stride, keys)
        return found

    def _split(
        self, layer: int, buffer: Tensor, first_slot: int, lanes: int, stride: int, keys: int
    ) -> tuple[Tensor, Tensor]:
        shape = self.shapes[layer]
        start, lane = first_slot * shape.width, stride * shape.width
        return (
            buffer.as_strided((lanes, shape.heads, keys, shape.k_dim), (lane, shape.k_dim, shape.width, 1), start),
            buffer.as_strided(
                (lanes, shape.heads, keys, shape.v_dim),
                (lane, shape.v_dim, shape.width, 1),
                start + shape.heads * shape.k_dim,
            ),
        )

    def zero_page(self, page: int) -> None:
        """Clear one page in every layer."""
        start = page * self.page_size
        for buffer in self.layers:
            buffer[start : start + self.page_size].zero_()

    def copy_slots(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy rows between slots in every layer (an accepted tree path moves down)."""
        src, dst = torch.tensor(source), torch.tensor(target)
        for buffer in self.layers:
            buffer.index_copy_(0, dst.to(buffer.device), buffer.index_select(0, src.to(buffer.device)))

    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(b.numel() * b.element_size() for b in self.layers)
