"""Multi-head latent attention, keys and values expanded before they are stored (DeepSeek-V2, arXiv 2405.04434).

Queries and keys are halves: one with rotary embedding, whose key all heads share, and one without. A score does not
depend on the order of the dimensions, so rows of the weights are put in an order at load that spares operations: the
rotated half first, its pairs apart (i, i + R / 2) where the checkpoint has them side by side.

Shapes: T rows, H hidden width, Hq heads, R rotated width, P width without rotary, V value width, A and C ranks of the
latent queries and keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specproxy.heads.base import TargetFacts
from specproxy.heads.blocks import need, product, read_rotary, rms_norm, turn_in_place
from specproxy.heads.rotary import RotaryTable, Turn
from specproxy.heads.weights import Weights
from specproxy.kernels.attention import Attention, Scoring
from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.models.linear import Linear

LATENT_EPS = 1e-6
"""Of the norms on the latents: the published code gives them the default of its norm, not the configuration's."""


@dataclass(frozen=True)
class LatentGeometry:
    """Sizes of an MLA layer. ``q_rank``: ``None`` where queries are projected in one step. ``interleaved``: whether the
    checkpoint's rotary pairs stand side by side."""

    hidden: int
    heads: int
    q_rank: int | None
    kv_rank: int
    rope: int
    nope: int
    value: int
    scale: float
    interleaved: bool
    rotary: RotaryTable

    @property
    def width(self) -> int:
        """Width of a head's queries and keys."""
        return self.rope + self.nope

    @property
    def kv(self) -> LayerShape:
        """KV of one layer."""
        return LayerShape(self.heads, self.width, self.value)


def read_latent_geometry(config: Mapping[str, Any], target: TargetFacts, path: str) -> LatentGeometry:
    """Sizes as DeepSeek-V3's configuration gives them. Raises ModelLoadError naming the key."""
    rope, nope = int(need(config, "qk_rope_head_dim", path)), int(need(config, "qk_nope_head_dim", path))
    q_rank = config.get("q_lora_rank")
    return LatentGeometry(
        hidden=int(need(config, "hidden_size", path)),
        heads=int(need(config, "num_attention_heads", path)),
        q_rank=None if q_rank is None else int(q_rank),
        kv_rank=int(need(config, "kv_lora_rank", path)),
        rope=rope,
        nope=nope,
        value=int(need(config, "v_head_dim", path)),
        scale=(rope + nope) ** -0.5 * _yarn_scale(config),
        interleaved=bool(config.get("rope_interleave", True)),
        rotary=read_rotary(config, rope, target, path),
    )


def _yarn_scale(config: Mapping[str, Any]) -> float:
    """Factor on the scores: the square of what YaRN puts on queries and on keys (Peng et al., arXiv 2309.00071), where
    the configuration asks for it on all dimensions."""
    rules = config.get("rope_parameters") or config.get("rope_scaling") or {}
    factor, weight = float(rules.get("factor") or 1.0), float(rules.get("mscale_all_dim") or 0.0)
    if rules.get("rope_type", rules.get("type", "default")) == "default" or factor <= 1:
        return 1.0
    return float((0.1 * weight * math.log(factor) + 1.0) ** 2)


class LatentAttention:
    """MLA [T, H] -> [T, H] over layer ``layer`` of the head's own KV.

    Tensors: ``prefix`` + q_a_proj, q_a_layernorm and q_b_proj, or q_proj; kv_a_proj_with_mqa [C + R, H],
    kv_a_layernorm [C], kv_b_proj [Hq * (P + V), C], o_proj; optional .bias of what reads H, and of o_proj.
    """

    def __init__(self, weights: Weights, prefix: str, layer: int, shape: LatentGeometry) -> None:
        self._layer = layer
        self._shape = shape
        self._down = _down(weights, prefix, shape)
        self._q_norm, self._q_up = None, None
        if shape.q_rank is not None:
            self._q_norm = rms_norm(weights, f"{prefix}q_a_layernorm.weight", shape.q_rank, LATENT_EPS)
            rows = weights.take(f"{prefix}q_b_proj.weight", shape.heads * shape.width, shape.q_rank)
            self._q_up = weights.linear(_rotated_first(rows, shape))
        self._kv_norm = rms_norm(weights, f"{prefix}kv_a_layernorm.weight", shape.kv_rank, LATENT_EPS)
        rows_up = shape.heads * (shape.nope + shape.value)
        self._kv_up = product(weights, prefix, ["kv_b_proj"], [rows_up], shape.kv_rank)
        self._out = product(weights, prefix, ["o_proj"], [shape.hidden], shape.heads * shape.value)

    def __call__(self, x: Tensor, turn: Turn, plan: Attention, kv: KVBuffers) -> Tensor:
        """x [T, H] -> [T, H]; keys and values go to ``plan.slots``."""
        shape, count = self._shape, x.shape[0]
        q, latent, shared = self._down(x).split([_q_rows(shape), shape.kv_rank, shape.rope], 1)
        if self._q_norm is not None and self._q_up is not None:
            q = self._q_up(self._q_norm(q))
        q, shared = q.view(count, shape.heads, shape.width), shared.view(count, 1, shape.rope)
        turn_in_place(q, turn)
        turn_in_place(shared, turn)
        both = self._kv_up(self._kv_norm(latent)).view(count, shape.heads, shape.nope + shape.value)
        plain, values = both.split([shape.nope, shape.value], 2)
        keys = torch.cat([shared.expand(-1, shape.heads, -1), plain], 2)
        kv.write(self._layer, plan.slots, torch.cat([keys.flatten(1), values.flatten(1)], 1))
        return self._out(plan.attend(kv, self._layer, q, Scoring(shape.scale)))


def _q_rows(shape: LatentGeometry) -> int:
    """Rows of the first product that belong to queries: latent ones, or whole heads."""
    return shape.heads * shape.width if shape.q_rank is None else shape.q_rank


def _down(weights: Weights, prefix: str, shape: LatentGeometry) -> Linear:
    """One product for all that reads the hidden state: queries (latent or whole), latent keys, the shared key."""
    rows = _q_rows(shape)
    latent = shape.kv_rank + shape.rope
    name, other = f"{prefix}{'q_proj' if shape.q_rank is None else 'q_a_proj'}", f"{prefix}kv_a_proj_with_mqa"
    q, kv = weights.take(f"{name}.weight", rows, shape.hidden), weights.take(f"{other}.weight", latent, shape.hidden)
    kv = _shared_apart(kv, shape)
    if shape.q_rank is None:
        q = _rotated_first(q, shape)
    kv_bias = weights.maybe(f"{other}.bias", latent)
    if kv_bias is None:
        return weights.linear(torch.cat([q, kv]))
    q_bias = weights.maybe(f"{name}.bias", rows)
    q_bias = kv_bias.new_zeros(rows) if q_bias is None else q_bias
    return weights.linear(torch.cat([q, kv]), torch.cat([q_bias, _shared_apart(kv_bias, shape)]))


def _pairs_apart(shape: LatentGeometry, device: torch.device) -> Tensor:
    """Order [R] in which rotary pairs stand R / 2 apart."""
    index = torch.arange(shape.rope, device=device)
    return torch.cat([index[0::2], index[1::2]]) if shape.interleaved else index


def _rotated_first(rows: Tensor, shape: LatentGeometry) -> Tensor:
    """Query rows [Hq * (P + R), K] with each head's rotated half in front, its pairs apart."""
    order = torch.cat([shape.nope + _pairs_apart(shape, rows.device), torch.arange(shape.nope, device=rows.device)])
    return rows.view(shape.heads, shape.width, -1)[:, order].reshape(rows.shape)


def _shared_apart(rows: Tensor, shape: LatentGeometry) -> Tensor:
    """Rows [C + R, ...] of the latent product, the pairs of the shared key apart."""
    latent, shared = rows.split([shape.kv_rank, shape.rope])
    return torch.cat([latent, shared[_pairs_apart(shape, rows.device)]])
