"""Keys and values in pages: one tensor a layer, a plane a head, a slot a token.

Shapes: T rows, B sequences side by side (lanes), Hk key heads, Dk and Dv head widths, D the larger of the two, L keys
after padding.
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
    def depth(self) -> int:
        """Width of a plane: keys and values have planes of one width."""
        return max(self.k_dim, self.v_dim)

    @property
    def width(self) -> int:
        """Numbers held per token."""
        return 2 * self.heads * self.depth


class KVBuffers:
    """Paged keys and values of one model: per layer one tensor [2 * Hk, slots, D], a plane for each key head, then one
    for each value head. A head's keys thus stand one behind the other in memory, as they are read: with all heads of a
    token side by side, attention of eight sequences took 1.4 to 1.9 times as long behind a product that had emptied
    the cache (2 key heads of 64, 384 keys, bf16, AMD EPYC Zen 4).

    Slot = page * page_size + offset. Page 0 is never written and stays zero (padding reads it), page 1 takes the
    writes of padding rows. ``KEY_BLOCK`` spare slots at the end let the last page be read with its padding.
    """

    RESERVED_PAGES = 2
    TRASH_SLOT_PAGE = 1

    def __init__(self, shapes: Sequence[LayerShape], layers: Sequence[Tensor], page_size: int) -> None:
        """Over tensors that exist; ``allocate`` makes them."""
        if KEY_BLOCK % page_size:
            raise ValueError(f"page_size {page_size} must divide {KEY_BLOCK}")
        self.shapes = list(shapes)
        self.layers = list(layers)
        self.page_size = page_size
        self._views: dict[tuple[int, int, int, int, int], tuple[Tensor, Tensor]] = {}

    @classmethod
    def allocate(
        cls, shapes: Sequence[LayerShape], num_pages: int, page_size: int, dtype: torch.dtype, device: str
    ) -> KVBuffers:
        """New buffers, zeroed by writing, so that the memory is there from the start and not when a page is used."""
        slots = num_pages * page_size + KEY_BLOCK
        layers = [torch.empty(2 * s.heads, slots, s.depth, dtype=dtype, device=device).zero_() for s in shapes]
        return cls(shapes, layers, page_size)

    @property
    def num_slots(self) -> int:
        """Slots of a plane, the spare ones included."""
        return self.layers[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers held."""
        return self.layers[0].dtype

    @property
    def trash_slot(self) -> int:
        """Where padding rows write."""
        return self.TRASH_SLOT_PAGE * self.page_size

    def write(self, layer: int, slots: Tensor, rows: Tensor) -> None:
        """Store rows [T, Hk * Dk + Hk * Dv] (keys, then values) at ``slots`` [T]; what is not finite becomes finite."""
        shape = self.shapes[layer]
        if shape.k_dim == shape.v_dim:
            planes = torch.nan_to_num(rows).view(rows.shape[0], 2 * shape.heads, shape.depth)
        else:
            planes = self._pad(torch.nan_to_num(rows), shape)
        self.layers[layer].index_copy_(1, slots, planes.transpose(0, 1))

    @staticmethod
    def _pad(rows: Tensor, shape: LayerShape) -> Tensor:
        """Rows as planes [T, 2 * Hk, D] where keys and values differ in width."""
        keys, values = rows.split([shape.heads * shape.k_dim, shape.heads * shape.v_dim], 1)
        planes = rows.new_zeros(rows.shape[0], 2 * shape.heads, shape.depth)
        planes[:, : shape.heads, : shape.k_dim] = keys.view(-1, shape.heads, shape.k_dim)
        planes[:, shape.heads :, : shape.v_dim] = values.view(-1, shape.heads, shape.v_dim)
        return planes

    def read(self, layer: int, first_slot: int, lanes: int, stride: int, keys: int) -> tuple[Tensor, Tensor]:
        """Views of keys [B, Hk, L, Dk] and values [B, Hk, L, Dv] of ``lanes`` sequences, ``keys`` slots each: lane b
        starts ``stride`` slots behind lane b - 1, the first at ``first_slot``."""
        key = (layer, first_slot, lanes, stride, keys)
        found = self._views.get(key)
        if found is None:
            if len(self._views) > MAX_VIEWS:
                self._views.clear()
            found = self._views[key] = self._view(layer, first_slot, lanes, stride, keys)
        return found

    def _view(self, layer: int, first_slot: int, lanes: int, stride: int, keys: int) -> tuple[Tensor, Tensor]:
        shape, buffer = self.shapes[layer], self.layers[layer]
        plane, depth = buffer.stride(0), shape.depth
        strides, start = (stride * depth, plane, depth, 1), first_slot * depth
        return (
            buffer.as_strided((lanes, shape.heads, keys, shape.k_dim), strides, start),
            buffer.as_strided((lanes, shape.heads, keys, shape.v_dim), strides, start + shape.heads * plane),
        )

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of keys [B, Hk, L, Dk] and values [B, Hk, L, Dv] at ``slots`` [B, L].

        By slot from the whole buffer: any cut or view of it that is not contiguous would be copied whole first.
        """
        shape, (lanes, keys) = self.shapes[layer], slots.shape
        planes = self.layers[layer].index_select(1, slots.reshape(-1))
        planes = planes.view(2 * shape.heads, lanes, keys, shape.depth).transpose(0, 1)
        return planes[:, : shape.heads, :, : shape.k_dim], planes[:, shape.heads :, :, : shape.v_dim]

    def slots(self, pages: Tensor) -> Tensor:
        """Slots [B, P * page_size] of pages [B, P]."""
        return (pages[:, :, None] * self.page_size + torch.arange(self.page_size, device=pages.device)).flatten(1)

    def zero_page(self, page: int) -> None:
        """Clear one page in every layer."""
        start = page * self.page_size
        for buffer in self.layers:
            buffer[:, start : start + self.page_size].zero_()

    def copy_slots(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy rows between slots in every layer (an accepted tree path moves down)."""
        src, dst = torch.tensor(source), torch.tensor(target)
        for buffer in self.layers:
            buffer.index_copy_(1, dst.to(buffer.device), buffer.index_select(1, src.to(buffer.device)))

    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(b.numel() * b.element_size() for b in self.layers)
