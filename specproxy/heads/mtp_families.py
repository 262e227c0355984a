"""What the families of MTP modules are made of: which tensors, in which order, around which decoder layer.

Sources: DeepSeek-V3 (arXiv 2412.19437), GLM-4.5 (arXiv 2508.06471), MiMo (arXiv 2505.07608), MiMo-V2-Flash's and
Qwen3-Next's published code, and how engines load them.

Shapes: T entries, N rows that guess, H width of the target and of the modules, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from specproxy.heads.base import TargetFacts
from specproxy.heads.blocks import (
    Geometry,
    ResidualNorm,
    SelfAttention,
    SwiGLU,
    product,
    read_geometry,
    residual_norm,
    rms_norm,
)
from specproxy.heads.gated import GatedAttention, make_offset_norm
from specproxy.heads.mla import LatentAttention, read_latent_geometry
from specproxy.heads.moe import MixtureOfExperts
from specproxy.heads.mtp_files import Layout
from specproxy.heads.rotary import RotaryTable, Turn
from specproxy.heads.sliding import SlidingAttention, read_sliding_geometry
from specproxy.heads.tables import lookup
from specproxy.heads.weights import Weights
from specproxy.kernels.attention import Attention
from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.models.linear import Linear
from specproxy.models.norm import Norm

Mixer = Callable[[Tensor, Turn, Attention, KVBuffers], Tensor]
"""Attention of a decoder layer: x [T, H] -> [T, H]."""


@dataclass(frozen=True)
class Layer:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    input_norm: Norm
    attention: Mixer
    mlp_norm: ResidualNorm
    mlp: Linear

    def __call__(self, x: Tensor, turn: Turn, plan: Attention, kv: KVBuffers) -> tuple[Tensor, Tensor]:
        """x [T, H] -> the stream and what the MLP adds to it, [T, H] each."""
        x, normed = self.mlp_norm.after(x, self.attention(self.input_norm(x), turn, plan, kv))
        return x, self.mlp(normed)


@dataclass(frozen=True)
class Module:
    """``embed``: ids [T] -> [T, H]. ``join``: both normed, concatenated [T, 2 * H] -> [T, H]. ``norm``: behind the
    layer. ``head``: [N, H] -> [N, V]."""

    embed: Callable[[Tensor], Tensor]
    token_norm: Norm
    hidden_norm: Norm
    join: Linear
    layer: Layer
    norm: ResidualNorm
    head: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Stack:
    """The modules of a checkpoint.

    ``layers``: KV of each. ``hidden_first``: the state stands before the embedding in the concatenation.
    ``blank_first``: the embedding counts as zero at position 0. ``anchored``: every module reads the target's state,
    not the one of the module before. ``reading``: what was understood, for people. ``group``, ``capturable``: see
    HeadSpec.
    """

    modules: tuple[Module, ...]
    layers: tuple[LayerShape, ...]
    rotary: RotaryTable
    reading: str
    hidden_first: bool = False
    blank_first: bool = False
    anchored: bool = False
    group: int = 1
    capturable: bool = True


@dataclass(frozen=True)
class Names:
    """What a family calls the parts of a module."""

    token_norm: str
    hidden_norm: str
    join: str
    mlp_norm: str
    norm: str


MIMO = Names("token_layernorm", "hidden_layernorm", "input_proj", "post_attention_layernorm", "final_layernorm")
MIMO_V2 = Names("enorm", "hnorm", "eh_proj", "pre_mlp_layernorm", "final_layernorm")
NEXT_LAYER = Names("enorm", "hnorm", "eh_proj", "post_attention_layernorm", "shared_head.norm")


def mimo(weights: Weights, config: Mapping[str, Any], target: TargetFacts, prefixes: Sequence[str]) -> Stack:
    """MiMo-7B: Qwen2's layer; embedding and output product are the target's."""
    shape = read_geometry(config, target, weights.path)

    def module(index: int, prefix: str) -> Module:
        attention = SelfAttention(weights, f"{prefix}self_attn.", index, shape)
        mlp = SwiGLU(weights, f"{prefix}mlp.", shape)
        return _module(weights, prefix, MIMO, shape, attention, mlp, target.embed, target.head)

    modules = tuple(module(index, prefix) for index, prefix in enumerate(prefixes))
    reading = "MTP as MiMo-7B has it"
    return Stack(modules, (shape.kv,) * len(modules), shape.rotary, reading, hidden_first=True, group=shape.group)


def mimo_v2(weights: Weights, config: Mapping[str, Any], target: TargetFacts, prefixes: Sequence[str]) -> Stack:
    """MiMo-V2: sliding-window attention, dense MLP.

    Several modules all read the target's state, as in SGLang and ExLlamaV3, which measured that fed each other's the
    later ones are accepted about half as often.
    """
    key_rows = weights.shape(f"{prefixes[0]}self_attn.k_proj.weight")[0]
    shape = read_sliding_geometry(config, target, weights.path, key_rows)
    common = shape.common

    def module(index: int, prefix: str) -> Module:
        attention = SlidingAttention(weights, f"{prefix}self_attn.", index, shape)
        mlp = SwiGLU(weights, f"{prefix}mlp.", common)
        return _module(weights, prefix, MIMO_V2, common, attention, mlp, target.embed, target.head)

    modules = tuple(module(index, prefix) for index, prefix in enumerate(prefixes))
    anchored = len(modules) > 1
    reading = "MTP as MiMo-V2 has it" + (", every module reading the target's state" if anchored else "")
    layers = (shape.kv,) * len(modules)
    return Stack(modules, layers, common.rotary, reading, anchored=anchored, group=common.group)


def next_layer(weights: Weights, config: Mapping[str, Any], target: TargetFacts, prefixes: Sequence[str]) -> Stack:
    """DeepSeek-V3 and GLM-4.5: one more layer of the target's own kind, told apart by the tensors of its attention."""
    config = {**config, "intermediate_size": _intermediate(config)}
    mla = None
    if any(name.startswith(f"{prefixes[0]}self_attn.kv_") for name in weights.names):
        mla = read_latent_geometry(config, target, weights.path)
        eps = float(config.get("rms_norm_eps") or 1e-6)
        shape = Geometry(mla.hidden, config["intermediate_size"], mla.heads, mla.heads, mla.width, eps, mla.rotary)
    else:
        shape = read_geometry({"partial_rotary_factor": 0.5, **config}, target, weights.path)
    shared = _Shared(weights, target)

    def module(index: int, prefix: str) -> Module:
        attention: Mixer
        if mla is None:
            attention = SelfAttention(weights, f"{prefix}self_attn.", index, shape)
        else:
            attention = LatentAttention(weights, f"{prefix}self_attn.", index, mla)
        mlp = _mlp(weights, f"{prefix}mlp.", config, "sigmoid", shape)
        embed, head = shared.embed(prefix), shared.head(prefix)
        return _module(weights, prefix, NEXT_LAYER, shape, attention, mlp, embed, head)

    modules = tuple(module(index, prefix) for index, prefix in enumerate(prefixes))
    kv = shape.kv if mla is None else mla.kv
    reading = f"MTP as {'GLM-4.5' if mla is None else 'DeepSeek-V3'} has it"
    return Stack(
        modules,
        (kv,) * len(modules),
        shape.rotary,
        reading,
        blank_first=True,
        group=shape.group,
        capturable=not _has_experts(weights, prefixes),
    )


def qwen_next(weights: Weights, config: Mapping[str, Any], target: TargetFacts, prefixes: Sequence[str]) -> Stack:
    """Qwen3-Next and Qwen3.5: full attention with a gate, norms of 1 + w; several layers share all around them."""
    whole = {"partial_rotary_factor": 0.25, **config, "intermediate_size": _intermediate(config)}
    shape = read_geometry(whole, target, weights.path)

    def norm(name: str) -> ResidualNorm:
        return ResidualNorm(make_offset_norm(weights.take(f"{name}.weight", shape.hidden), shape.eps))

    token_norm, hidden_norm = norm("mtp.pre_fc_norm_embedding"), norm("mtp.pre_fc_norm_hidden")
    join = product(weights, "mtp.", ["fc"], [shape.hidden], 2 * shape.hidden)
    final = norm("mtp.norm")

    def module(index: int, prefix: str) -> Module:
        layer = Layer(
            input_norm=norm(f"{prefix}input_layernorm"),
            attention=GatedAttention(weights, f"{prefix}self_attn.", index, shape),
            mlp_norm=norm(f"{prefix}post_attention_layernorm"),
            mlp=_mlp(weights, f"{prefix}mlp.", config, "softmax", shape),
        )
        return Module(target.embed, token_norm, hidden_norm, join, layer, final, target.head)

    modules = tuple(module(index, prefix) for index, prefix in enumerate(prefixes))
    return Stack(
        modules,
        (shape.kv,) * len(modules),
        shape.rotary,
        "MTP as Qwen3-Next has it",
        group=shape.group,
        capturable=not _has_experts(weights, prefixes),
    )


FAMILIES: dict[Layout, Callable[[Weights, Mapping[str, Any], TargetFacts, Sequence[str]], Stack]] = {
    "mimo": mimo,
    "mimo_v2": mimo_v2,
    "qwen_next": qwen_next,
    "next_layer": next_layer,
}


class _Shared:
    """Embedding and output product: a module's own where its file has them, else the target's.

    A file of its own may have them once, under the target's names.
    """

    def __init__(self, weights: Weights, target: TargetFacts) -> None:
        self._weights = weights
        self._target = target
        self._sizes = target.vocab_size, target.hidden_size
        table, rows = (weights.maybe(name, *self._sizes) for name in ("model.embed_tokens.weight", "lm_head.weight"))
        self._embed = lookup(table, target)
        self._head = target.head if rows is None else weights.linear(rows)

    def embed(self, prefix: str) -> Callable[[Tensor], Tensor]:
        """Ids [T] -> [T, H]."""
        table = self._weights.maybe(f"{prefix}embed_tokens.weight", *self._sizes)
        return self._embed if table is None else lookup(table, self._target)

    def head(self, prefix: str) -> Callable[[Tensor], Tensor]:
        """States [N, H] -> [N, V]."""
        for name in ("shared_head.head.weight", "lm_head.weight"):
            if f"{prefix}{name}" in self._weights:
                return self._weights.linear(self._weights.take(f"{prefix}{name}", *self._sizes))
        return self._head


def _module(
    weights: Weights,
    prefix: str,
    names: Names,
    shape: Geometry,
    attention: Mixer,
    mlp: Linear,
    embed: Callable[[Tensor], Tensor],
    head: Callable[[Tensor], Tensor],
) -> Module:
    """A module whose parts all stand under ``prefix``."""

    def norm(name: str) -> Norm:
        return rms_norm(weights, f"{prefix}{name}.weight", shape.hidden, shape.eps)

    def behind(name: str) -> ResidualNorm:
        return residual_norm(weights, f"{prefix}{name}.weight", shape.hidden, shape.eps)

    return Module(
        embed=embed,
        token_norm=norm(names.token_norm),
        hidden_norm=norm(names.hidden_norm),
        join=product(weights, prefix, [names.join], [shape.hidden], 2 * shape.hidden),
        layer=Layer(norm("input_layernorm"), attention, behind(names.mlp_norm), mlp),
        norm=behind(names.norm),
        head=head,
    )


def _intermediate(config: Mapping[str, Any]) -> int:
    """Width of a dense MLP; configurations of models with experts alone have none, and need none."""
    return int(config.get("intermediate_size") or config.get("moe_intermediate_size") or 0)


def _has_experts(weights: Weights, prefixes: Sequence[str]) -> bool:
    """Whether a module chooses among experts; which ones are chosen is read back from the device."""
    return any(f"{prefix}mlp.gate.weight" in weights for prefix in prefixes)


def _mlp(
    weights: Weights, prefix: str, config: Mapping[str, Any], scores: Literal["sigmoid", "softmax"], shape: Geometry
) -> Linear:
    """Experts where there is a router, else one dense MLP."""
    if f"{prefix}gate.weight" in weights:
        return MixtureOfExperts(weights, prefix, config, scores, shape)
    return SwiGLU(weights, prefix, shape)
