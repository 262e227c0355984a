"""What EAGLE and MTP heads are made of: attention over paged KV, SwiGLU, RMSNorm, Llama's decoder layer.

At one row a head's step is dispatch, not arithmetic (about 8 us an operation on a CPU): projections of one input are
one product, rotary turns queries and keys together in place, its cos and sin are looked up.

Shapes: T rows, H hidden width, Hq query heads, Hk key heads, W head width, R <= W rotated width, I intermediate width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.base import TargetFacts
from specproxy.heads.rotary import RotaryTable, Turn, make_rotary
from specproxy.heads.weights import Weights
from specproxy.kernels.attention import Attention, Scoring
from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.kernels.plan import StepPlan
from specproxy.models.linear import Linear
from specproxy.models.native_parts import native_attention, native_mlp
from specproxy.models.norm import Norm

SLACK = 64
"""Positions behind the target's last that a draft may still visit: no draft has more nodes."""

After = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""x and what a block adds to it [T, H] each -> their sum, and its norm."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of a Llama-family layer. ``window``: keys that a row sees, itself included; ``None`` for all."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rotary: RotaryTable
    window: int | None = None

    @property
    def kv(self) -> LayerShape:
        """KV of one layer."""
        return LayerShape(self.kv_heads, self.head_dim, self.head_dim)

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads


def need(config: Mapping[str, Any], key: str, path: str) -> Any:
    """A value that a configuration must give. Raises ModelLoadError naming the key."""
    value = config.get(key)
    if value is None:
        raise ModelLoadError(f"{path}: config.json has no {key}; expected the configuration published with the weights")
    return value


def read_geometry(config: Mapping[str, Any], target: TargetFacts, path: str) -> Geometry:
    """Sizes as a Llama-style ``config`` gives them, with the defaults of those that publish heads: rope_theta 10000,
    not the target's; rms_norm_eps 1e-6; head_dim hidden / heads. ``path``: for messages. Raises ModelLoadError."""
    hidden, heads = int(need(config, "hidden_size", path)), int(need(config, "num_attention_heads", path))
    kv_heads = int(config.get("num_key_value_heads") or heads)
    act = config.get("hidden_act") or "silu"
    if act != "silu":
        raise ModelLoadError(f"{path}: config.json has hidden_act {act!r}; expected silu, the only one heads can have")
    if heads % kv_heads or (config.get("head_dim") is None and hidden % heads):
        raise ModelLoadError(
            f"{path}: config.json has hidden_size {hidden}, num_attention_heads {heads} and num_key_value_heads "
            f"{kv_heads}; expected each to divide the one before"
        )
    head_dim = int(config.get("head_dim") or hidden // heads)
    return Geometry(
        hidden=hidden,
        intermediate=int(need(config, "intermediate_size", path)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        eps=float(config.get("rms_norm_eps") or 1e-6),
        rotary=read_rotary(config, head_dim, target, path),
    )


def read_rotary(config: Mapping[str, Any], head_dim: int, target: TargetFacts, path: str) -> RotaryTable:
    """The rotary embedding of ``config`` for all positions of the target. Raises ModelLoadError."""
    rules = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(rules.get("rope_theta") or config.get("rope_theta") or 10000.0)
    trained = config.get("max_position_embeddings")
    if trained is not None:
        rules.setdefault("original_max_position_embeddings", trained)
    partial = rules.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    try:
        rotary = make_rotary(int(head_dim * partial), theta, rules, target.device)
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {error}") from None
    length = max(int(getattr(target.config, "max_position_embeddings", 0) or 0), int(trained or 0), 4096)
    return RotaryTable(rotary, length + SLACK, target.dtype)


def rms_norm(weights: Weights, name: str, width: int, eps: float) -> Norm:
    """The norm [T, width] -> [T, width] whose weight is the tensor ``name``."""
    return weights.norm(weights.take(name, width), eps)


class ResidualNorm:
    """A norm [T, H] -> [T, H], alone or behind a residual sum. ``fused``: sum and norm as one, where that exists."""

    def __init__(self, norm: Norm, fused: After | None = None) -> None:
        self._norm = norm
        self._fused = fused

    def __call__(self, x: Tensor) -> Tensor:
        """The norm alone."""
        return self._norm(x)

    def after(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """x + delta, and its norm."""
        if self._fused is not None:
            return self._fused(x, delta)
        x = x + delta
        return x, self._norm(x)


def residual_norm(weights: Weights, name: str, width: int, eps: float) -> ResidualNorm:
    """The norm whose weight is the tensor ``name``, to stand behind a residual sum."""
    if weights.kernels is None:
        return ResidualNorm(rms_norm(weights, name, width, eps))
    norm = weights.kernels.norm(weights.take(name, width), eps)
    return ResidualNorm(norm, norm.after)


def product(weights: Weights, prefix: str, names: Sequence[str], rows: Sequence[int], width: int) -> Linear:
    """One product for several projections of one input, [T, width] -> [T, sum(rows)]: tensors ``prefix`` + name +
    .weight [rows, width], and .bias where the first has one."""
    weight = [weights.take(f"{prefix}{name}.weight", count, width) for name, count in zip(names, rows, strict=True)]
    bias = None
    if f"{prefix}{names[0]}.bias" in weights:
        bias = torch.cat([weights.take(f"{prefix}{name}.bias", n) for name, n in zip(names, rows, strict=True)])
    return weights.linear(weight[0] if len(weight) == 1 else torch.cat(weight), bias)


class SelfAttention:
    """Grouped-query attention [T, width] -> [T, H] over layer ``layer`` of the head's own KV.

    Tensors: ``prefix`` + {q,k,v,o}_proj.weight, optional .bias, optional {q,k}_norm.weight [W]. ``width``: of the
    input, H where not given.
    """

    def __init__(self, weights: Weights, prefix: str, layer: int, shape: Geometry, width: int | None = None) -> None:
        self._layer = layer
        self._shape = shape
        self._scoring = Scoring(shape.head_dim**-0.5, shape.window)
        self._rotated = shape.heads + shape.kv_heads
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        names, rows = ["q_proj", "k_proj", "v_proj"], [queries, keys, keys]
        self._qkv = product(weights, prefix, names, rows, shape.hidden if width is None else width)
        self._out = product(weights, prefix, ["o_proj"], [shape.hidden], queries)
        self._norms: tuple[Tensor, Tensor] | None = None
        if f"{prefix}q_norm.weight" in weights:
            self._norms = (
                weights.take(f"{prefix}q_norm.weight", shape.head_dim),
                weights.take(f"{prefix}k_norm.weight", shape.head_dim),
            )
        sizes = (shape.heads, shape.kv, shape.rotary.width, shape.eps, shape.window)
        self._native = native_attention(self._qkv, self._out, self._norms, *sizes)
        self._fused = None
        if weights.kernels is not None:
            self._fused = weights.kernels.attention((self._qkv, self._out), self._norms, shape, self._scoring)

    def __call__(self, x: Tensor, turn: Turn, plan: Attention, kv: KVBuffers) -> Tensor:
        """x [T, width] -> [T, H]; keys and values go to ``plan.slots``."""
        if self._native is not None and isinstance(plan, StepPlan):
            return self._native(x, *turn.factors, plan, kv, self._layer)
        if self._fused is not None:
            return self._fused(x, turn, plan, kv, self._layer)
        shape, count = self._shape, x.shape[0]
        heads, width, eps = shape.heads, shape.head_dim, shape.eps
        qkv = self._qkv(x)
        both = qkv[:, : self._rotated * width].view(count, self._rotated, width)
        if self._norms is not None:
            both[:, :heads] = F.rms_norm(both[:, :heads], (width,), self._norms[0], eps)
            both[:, heads:] = F.rms_norm(both[:, heads:], (width,), self._norms[1], eps)
        turn_in_place(both, turn)
        kv.write(self._layer, plan.slots, qkv[:, heads * width :])
        return self._out(plan.attend(kv, self._layer, both[:, :heads], self._scoring))


def turn_in_place(heads: Tensor, turn: Turn) -> None:
    """Rotate the first R of the dimensions of heads [T, Hn, W]; pairs are (i, i + R / 2)."""
    cos, sin = turn.factors
    count, number, width = heads.shape[0], heads.shape[1], cos.shape[-1]
    turned = heads if width == heads.shape[2] else heads[..., :width]
    swapped = turned.view(count, number, 2, width // 2).flip(2).view(count, number, width)
    torch.add(turned * cos, swapped.mul_(sin), out=turned)


class SwiGLU:
    """down(silu(gate x) * up x), [T, H] -> [T, H]; tensors ``prefix`` + {gate,up,down}_proj (Shazeer, 2002.05202)."""

    def __init__(self, weights: Weights, prefix: str, shape: Geometry) -> None:
        size = shape.intermediate
        self._gate_up = product(weights, prefix, ["gate_proj", "up_proj"], [size, size], shape.hidden)
        self._down = product(weights, prefix, ["down_proj"], [shape.hidden], size)
        self._whole = native_mlp(self._gate_up, self._down)
        if weights.kernels is not None:
            self._whole = weights.kernels.mlp(self._gate_up, self._down)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, H] -> [T, H]."""
        if self._whole is not None:
            return self._whole(x)
        gate, up = self._gate_up(x).chunk(2, -1)
        return self._down(F.silu(gate) * up)


class DecoderLayer:
    """Llama's layer: x + attention(norm(x)), then x + mlp(norm(x)).

    ``input_norm``: name of the norm before attention, ``None`` where the format has none there. ``mlp_norm``: of the
    norm before the MLP.
    """

    def __init__(
        self,
        weights: Weights,
        prefix: str,
        layer: int,
        shape: Geometry,
        *,
        input_norm: str | None = "input_layernorm",
        mlp_norm: str = "post_attention_layernorm",
    ) -> None:
        self._attention = SelfAttention(weights, f"{prefix}self_attn.", layer, shape)
        self._mlp = SwiGLU(weights, f"{prefix}mlp.", shape)
        self._mlp_norm = residual_norm(weights, f"{prefix}{mlp_norm}.weight", shape.hidden, shape.eps)
        self._input_norm: Norm | None = None
        if input_norm is not None:
            self._input_norm = rms_norm(weights, f"{prefix}{input_norm}.weight", shape.hidden, shape.eps)

    def __call__(self, x: Tensor, turn: Turn, plan: Attention, kv: KVBuffers) -> tuple[Tensor, Tensor]:
        """x [T, H] -> the stream and what the MLP adds to it, [T, H] each."""
        normed = x if self._input_norm is None else self._input_norm(x)
        x, normed = self._mlp_norm.after(x, self._attention(normed, turn, plan, kv))
        return x, self._mlp(normed)
