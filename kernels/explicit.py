"""Attention that torch's fused kernel cannot express: capped scores and sinks, spelled out.

Shapes: B lanes, Hq query heads, Hk key heads, G = Hq / Hk, R rows (token-major over the group), L keys.
"""

from __future__ import annotations

import torch
from torch import Tensor


def explicit_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    group: int,
) -> Tensor:
    """q [B, Hk, R, Dk], keys [B, Hk, L, Dk], values [B, Hk, L, Dv], additive mask -> [B, Hk, R, Dv]; softmax in
    float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.matmul(q, keys.transpose(2, 3)).to(wide) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask.to(wide)
    if sinks is not None:
        per_row = sinks.to(wide).view(keys.shape[1], group).repeat(1, -(-q.shape[2] // group))[:, : q.shape[2]]
        scores = torch.cat([scores, per_row[None, :, :, None].expand(q.shape[0], -1, -1, -1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : keys.shape[2]]
    return torch.matmul(weights.to(values.dtype), values)
