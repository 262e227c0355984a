"""Attention with every row as a lane of its own: no plan, only tensors, so that a compiler can trace it.

Shapes: T rows, P pages a row, Hq query heads, Dk and Dv head widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specproxy.kernels.explicit import explicit_attention
from specproxy.kernels.paged import KVBuffers


@dataclass
class RowAttention:
    """Nothing is shared between rows of one sequence, so it is for few rows; nothing is promised about bits.

    ``slots`` [T]. ``positions`` [T]: a row sees the keys up to its own. ``pages`` [T, P]: each row's pages.
    """

    slots: Tensor
    positions: Tensor
    pages: Tensor

    def attend(
        self,
        kv: KVBuffers,
        layer: int,
        q: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See Attention.attend."""
        shape, rows = kv.shapes[layer], q.shape[0]
        group = q.shape[1] // shape.heads
        index = torch.arange(self.pages.shape[1] * kv.page_size, device=q.device)
        hidden = index > self.positions[:, None]
        if window is not None:
            hidden = hidden | (index <= self.positions[:, None] - window)
        mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill(hidden, float("-inf"))
        mask = mask[:, None, None].expand(-1, 1, group, -1)
        keys, values = kv.gather(layer, kv.slots(self.pages))
        folded = q.reshape(rows, shape.heads, group, shape.k_dim)
        if softcap is None and sinks is None:
            out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
        else:
            out = explicit_attention(folded, keys, values, mask, scale, softcap, sinks, group)
        return out.reshape(rows, -1)
