"""Sliding-window attention with values narrower than keys and a sink per head: MiMo-V2.

Source: MiMo-V2-Flash's published configuration and code, as transformers has it (``models/mimo_v2_flash``).

Shapes: T rows, H hidden width, Hq query heads, Hk key heads, W width of queries and keys, V of values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.base import TargetFacts
from specproxy.heads.blocks import Geometry, need, product, read_geometry, turn_in_place
from specproxy.heads.rotary import Turn
from specproxy.heads.weights import Weights
from specproxy.kernels.attention import Attention, Scoring
from specproxy.kernels.paged import KVBuffers, LayerShape


@dataclass(frozen=True)
class SlidingGeometry:
    """``common``: what any grouped-query layer has, its window included. ``value``: V. ``value_scale``: factor on
    values, before they are stored."""

    common: Geometry
    value: int
    value_scale: float

    @property
    def kv(self) -> LayerShape:
        """KV of one layer."""
        return LayerShape(self.common.kv_heads, self.common.head_dim, self.value)


def read_sliding_geometry(config: Mapping[str, Any], target: TargetFacts, path: str, key_rows: int) -> SlidingGeometry:
    """Sizes of the sliding-window layers, by the names of the published configuration or of transformers'.

    ``key_rows``: rows of a module's k_proj; the number of key heads follows, which configurations give in two ways.
    Raises ModelLoadError.
    """
    heads = int(config.get("swa_num_attention_heads") or need(config, "num_attention_heads", path))
    head_dim = int(config.get("swa_head_dim") or need(config, "head_dim", path))
    if key_rows % head_dim or heads % (key_rows // head_dim or 1):
        raise ModelLoadError(f"{path}: k_proj has {key_rows} rows; expected a divisor of {heads} heads of {head_dim}")
    common = read_geometry(
        {
            **config,
            **_rotary_rules(config),
            "num_attention_heads": heads,
            "num_key_value_heads": key_rows // head_dim,
            "head_dim": head_dim,
            "rms_norm_eps": config.get("layernorm_epsilon") or config.get("rms_norm_eps"),
        },
        target,
        path,
    )
    window = config.get("sliding_window") or need(config, "sliding_window_size", path)
    scale = config.get("attention_value_scale")
    return SlidingGeometry(
        common=replace(common, window=int(window)),
        value=int(config.get("swa_v_head_dim") or config.get("v_head_dim") or head_dim),
        value_scale=1.0 if scale is None else float(scale),
    )


def _rotary_rules(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding of the sliding layers: transformers nests it by the kind of layer, the hub names it."""
    rules = config.get("rope_parameters") or {}
    if "sliding_attention" in rules:
        return {"rope_parameters": rules["sliding_attention"]}
    theta = config.get("swa_rope_theta") or config.get("rope_theta")
    return {"rope_parameters": {**(config.get("rope_scaling") or {}), **rules, "rope_theta": theta}}


class SlidingAttention:
    """Attention [T, H] -> [T, H] over the last keys only, in layer ``layer`` of the head's own KV.

    Tensors: ``prefix`` + {q,k,v,o}_proj.weight, optional .bias, optional attention_sink_bias [Hq].
    """

    def __init__(self, weights: Weights, prefix: str, layer: int, shape: SlidingGeometry) -> None:
        common = shape.common
        self._layer = layer
        self._shape = shape
        queries, keys = common.heads * common.head_dim, common.kv_heads * common.head_dim
        self._rows = [queries + keys, common.kv_heads * shape.value]
        names, rows = ["q_proj", "k_proj", "v_proj"], [queries, keys, self._rows[1]]
        self._qkv = product(weights, prefix, names, rows, common.hidden)
        self._out = product(weights, prefix, ["o_proj"], [common.hidden], common.heads * shape.value)
        sinks = weights.maybe(f"{prefix}attention_sink_bias", common.heads)
        self._scoring = Scoring(common.head_dim**-0.5, common.window, sinks=sinks)

    def __call__(self, x: Tensor, turn: Turn, plan: Attention, kv: KVBuffers) -> Tensor:
        """x [T, H] -> [T, H]; keys and values go to ``plan.slots``."""
        shape, heads, width = self._shape.common, self._shape.common.heads, self._shape.common.head_dim
        rotated, values = self._qkv(x).split(self._rows, 1)
        both = rotated.view(x.shape[0], heads + shape.kv_heads, width)
        turn_in_place(both, turn)
        kv.write(self._layer, plan.slots, torch.cat([both[:, heads:].flatten(1), values * self._shape.value_scale], 1))
        out = plan.attend(kv, self._layer, both[:, :heads], self._scoring)
        return self._out(out)
