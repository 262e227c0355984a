"""RMSNorm for small row counts on CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Norm = Callable[[Tensor], Tensor]


def make_rms_norm(weight: Tensor, eps: float) -> Norm:
    """x [T, D] -> x / sqrt(mean(x^2) + eps) * weight, statistics in float32 (Zhang, Sennrich, arXiv 1910.07467).

    torch has a fused LayerNorm for CPU, and no fused RMSNorm: eight small operations, 11 us a call at one row of 384
    on two Zen 5 cores. The mean of [x, -x] is zero and its variance is mean(x^2), so the first half of its LayerNorm is
    the RMSNorm of x: 6 us. Elsewhere torch's own is used.
    """
    width = weight.shape[0]
    if weight.device.type != "cpu":
        return lambda x: F.rms_norm(x, (width,), weight, eps)
    doubled = torch.cat([weight, weight])
    return lambda x: F.layer_norm(torch.cat([x, -x], 1), (2 * width,), doubled, None, eps)[:, :width]
