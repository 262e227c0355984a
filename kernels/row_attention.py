"""Attention with every row as a lane of its own: no plan, only tensors, so that a compiler can trace it.

Shapes: T rows, P pages a row, Hq query heads, Dk and Dv head widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specproxy.kernels.attention import Scoring
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

    def attend(self, kv: KVBuffers, layer: int, q: Tensor, scoring: Scoring) -> Tensor:
        """See Attention.attend."""
        shape, rows = kv.shapes[layer], q.shape[0]
        group = q.shape[1] // shape.heads
        index = torch.arange(self.pages.shape[1] * kv.page_size, device=q.device)
        hidden = index > self.positions[:, None]
        if scoring.window is not None:
            hidden = hidden | (index <= self.positions[:, None] - scoring.window)
        mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill(hidden, float("-inf"))
        mask = mask[:, None, None].expand(-1, 1, group, -1)
        keys, values = kv.gather(layer, kv.slots(self.pages))
        folded = q.reshape(rows, shape.heads, group, shape.k_dim)
        if scoring.softcap is None and scoring.sinks is None:
            out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scoring.scale)
        else:
            out = explicit_attention(folded, keys, values, mask, scoring.scale, scoring.softcap, scoring.sinks, group)
        return out.reshape(rows, -1)
