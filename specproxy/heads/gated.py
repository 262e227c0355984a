"""Attention with a gate on its output, and norms that are stored as what they add to one: Qwen3-Next, Qwen3.5.

Source: the models' published code, as transformers has it (``models/qwen3_next``).

Shapes: T rows, H hidden width, Hq query heads, Hk key heads, W head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from specproxy.heads.blocks import Geometry, product, turn_in_place
from specproxy.heads.rotary import Turn
from specproxy.heads.weights import Weights
from specproxy.kernels.attention import Attention, Scoring
from specproxy.kernels.paged import KVBuffers
from specproxy.models.norm import Norm


def make_offset_norm(weight: Tensor, eps: float) -> Norm:
    """x [..., W] -> x / sqrt(mean(x^2) + eps) * (1 + weight).

    One and weight are not added beforehand: in bf16 a small weight would vanish in the sum.
    """
    width = weight.shape[0]

    def norm(x: Tensor) -> Tensor:
        plain = F.rms_norm(x, (width,), None, eps)
        return torch.addcmul(plain, plain, weight)

    return norm


class GatedAttention:
    """Grouped-query attention [T, H] -> [T, H], its output times sigmoid(gate) before the last product.

    Tensors: ``prefix`` + q_proj.weight [Hq * 2 * W, H] (a head's queries, then its gates), {k,v,o}_proj.weight,
    {q,k}_norm.weight [W], optional .bias. ``layer``: which of the head's KV layers is its own.
    """

    def __init__(self, weights: Weights, prefix: str, layer: int, shape: Geometry) -> None:
        self._layer = layer
        self._shape = shape
        self._scoring = Scoring(shape.head_dim**-0.5)
        self._qkv_gate = weights.linear(*_merged(weights, prefix, shape))
        self._out = product(weights, prefix, ["o_proj"], [shape.hidden], shape.heads * shape.head_dim)
        self._q_norm = make_offset_norm(weights.take(f"{prefix}q_norm.weight", shape.head_dim), shape.eps)
        self._k_norm = make_offset_norm(weights.take(f"{prefix}k_norm.weight", shape.head_dim), shape.eps)

    def __call__(self, x: Tensor, turn: Turn, plan: Attention, kv: KVBuffers) -> Tensor:
        """x [T, H] -> [T, H]; keys and values go to ``plan.slots``."""
        shape, count = self._shape, x.shape[0]
        heads, keys, width = shape.heads, shape.kv_heads, shape.head_dim
        q, k, v, gate = self._qkv_gate(x).split([n * width for n in (heads, keys, keys, heads)], 1)
        both = torch.cat([self._q_norm(q.view(count, heads, width)), self._k_norm(k.view(count, keys, width))], 1)
        turn_in_place(both, turn)
        kv.write(self._layer, plan.slots, torch.cat([both[:, heads:].flatten(1), v], 1))
        out = plan.attend(kv, self._layer, both[:, :heads], self._scoring)
        return self._out(out * gate.sigmoid())


def _merged(weights: Weights, prefix: str, shape: Geometry) -> tuple[Tensor, Tensor | None]:
    """One product for queries, keys, values and gates, in this order, and its bias."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def merge(suffix: str, *width: int) -> Tensor:
        q = weights.take(f"{prefix}q_proj.{suffix}", 2 * queries, *width)
        q, gate = q.view(shape.heads, 2, shape.head_dim, *width).unbind(1)
        k, v = (weights.take(f"{prefix}{name}.{suffix}", keys, *width) for name in ("k_proj", "v_proj"))
        return torch.cat([q.flatten(0, 1), k, v, gate.flatten(0, 1)])

    return merge("weight", shape.hidden), merge("bias") if f"{prefix}q_proj.bias" in weights else None
