"""EAGLE-3 (Li et al., arXiv 2503.01840): three of the target's states, fused; then one decoder layer, recurrently.

Forward, entry of position p (``eagle/model/cnets.py`` of the EAGLE repository, flags of SpecForge and speculators):

    h = fc(cat[hs[low], hs[mid], hs[high]])      the target's; later the layer's own output
    a = cat[input_layernorm(embed(token p + 1)), hidden_norm(h)]
    x = h + attention(a)                         norm_before_residual: hidden_norm(h) in place of h
    x = x + mlp(post_attention_layernorm(x))
    scores = lm_head(norm(x)); next h = x        norm_output (EAGLE-3.1): next h = norm(x)

Shapes: T entries, N rows that guess, C captured states, D target width, H head width, Vd head vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.base import HeadSpec, HeadStep, TargetFacts
from specproxy.heads.blocks import (
    DecoderLayer,
    Geometry,
    ResidualNorm,
    SelfAttention,
    SwiGLU,
    read_geometry,
    residual_norm,
    rms_norm,
)
from specproxy.heads.readings import NOWHERE, Origin, Reading, flag, is_speculators, nested, uses_layers
from specproxy.heads.tables import Ends, check_width, read_ends
from specproxy.heads.weights import Weights, fingerprint
from specproxy.kernels.attention import Attention
from specproxy.kernels.paged import KVBuffers
from specproxy.models.norm import Norm

LEGACY_NORMS = ("aux_norm_low", "aux_norm_mid", "aux_norm_high")
FUSE = "fc.weight"


@dataclass(frozen=True)
class Eagle3Parts:
    """The weights in their places; the same under every reading. ``more``: layers behind the first. ``spec``: what
    holds under every reading."""

    ends: Ends
    fuse: Callable[[Tensor], Tensor]
    input_norm: Norm
    hidden_norm: Norm
    attention: SelfAttention
    mlp: SwiGLU
    mlp_norm: ResidualNorm
    more: tuple[DecoderLayer, ...]
    norm: ResidualNorm
    norm_output: bool
    shape: Geometry
    spec: HeadSpec
    notes: tuple[str, ...]


class Eagle3Head:
    """RecurrentHead over ``parts``, understood as ``reading`` says."""

    def __init__(self, parts: Eagle3Parts, reading: Reading) -> None:
        self._parts = parts
        self._normed_residual = reading.norm_before_residual
        facts = (reading.hidden, reading.norm_before_residual)
        self.spec = replace(
            parts.spec,
            hidden=reading.hidden,
            fingerprint=fingerprint({}, parts.spec.fingerprint, *facts),
            reading="; ".join([str(reading), *parts.notes]),
        )

    def under(self, reading: Reading) -> Eagle3Head:
        """The same weights under another reading; nothing is copied."""
        return Eagle3Head(self._parts, reading)

    def fuse(self, taps: Tensor) -> Tensor:
        """See RecurrentHead.fuse."""
        return self._parts.fuse(taps)

    def step(
        self, ids: Tensor, hidden: Tensor, positions: Tensor, plan: Attention, kv: KVBuffers, module: int = 0
    ) -> HeadStep:
        """See RecurrentHead.step; there is one module."""
        parts = self._parts
        turn = parts.shape.rotary.at(positions)
        normed = parts.hidden_norm(hidden)
        both = torch.cat([parts.input_norm(parts.ends.embed(ids)), normed], 1)
        residual = normed if self._normed_residual else hidden
        x, normed = parts.mlp_norm.after(residual, parts.attention(both, turn, plan, kv))
        delta = parts.mlp(normed)
        for layer in parts.more:
            x, delta = layer(x + delta, turn, plan, kv)
        x, features = parts.norm.after(x, delta)
        return HeadStep(features if parts.norm_output else x, features)

    def logits(self, features: Tensor, module: int = 0) -> Tensor:
        """See RecurrentHead.logits."""
        return self._parts.ends.output(features)


def build(
    weights: Weights, config: Mapping[str, Any], target: TargetFacts, reading: Reading, origin: Origin = NOWHERE
) -> Eagle3Head:
    """The head in ``weights``, in the EAGLE repository's, SpecForge's or speculators' layout.

    ``config``: its configuration, dimensions at the top. Takes every tensor it has a place for and leaves the rest for
    ``Weights.finish``. Raises ModelLoadError.
    """
    path = weights.path
    shape = replace(read_geometry(config, target, path), window=read_window(config, path))
    check_width(path, int(config.get("target_hidden_size") or shape.hidden), target)
    prefix = "midlayer." if any(name.startswith("midlayer.") for name in weights.names) else "layers.0."
    ends = read_ends(weights, config, target, shape.hidden)
    count = len(reading.hidden)
    fuse = (
        _read_fuse(weights, config, target, shape, count)
        if uses_layers(config)
        else _read_plain(weights, target, shape)
    )
    width, eps = shape.hidden, shape.eps
    more = _read_more(weights, shape)
    norm_output = bool(flag(config, "norm_output")) and not is_specforge(config)
    spec = HeadSpec(
        kind="eagle3",
        hidden=reading.hidden,
        layers=(shape.kv,) * (1 + len(more)),
        steps=None,
        window=read_trained(config, target),
        ids=ends.ids,
        fingerprint=weights.fingerprint(shape.eps, norm_output, sorted(config.items(), key=lambda item: item[0])),
        verifier=origin.verifier,
        group=shape.group,
    )
    parts = Eagle3Parts(
        ends=ends,
        fuse=fuse,
        input_norm=rms_norm(weights, f"{prefix}input_layernorm.weight", width, eps),
        hidden_norm=rms_norm(weights, f"{prefix}hidden_norm.weight", width, eps),
        attention=SelfAttention(weights, f"{prefix}self_attn.", 0, shape, 2 * width),
        mlp=SwiGLU(weights, f"{prefix}mlp.", shape),
        mlp_norm=residual_norm(weights, f"{prefix}post_attention_layernorm.weight", width, eps),
        more=more,
        norm=residual_norm(weights, "norm.weight", width, eps),
        norm_output=norm_output,
        shape=shape,
        spec=spec,
        notes=origin.notes,
    )
    return Eagle3Head(parts, reading)


def is_specforge(config: Mapping[str, Any]) -> bool:
    """Whether a configuration was written by SpecForge, whose ``norm_output`` means something else: that the scores
    are taken behind the norm, as always."""
    named = "LlamaForCausalLMEagle3" in (config.get("architectures") or ())
    return not is_speculators(config) and (named or bool(nested(config)))


def read_trained(config: Mapping[str, Any], target: TargetFacts) -> int | None:
    """Positions that a head was trained for, ``None`` where they are no fewer than the target's."""
    trained = config.get("max_position_embeddings")
    limit = getattr(target.config, "max_position_embeddings", None)
    return None if trained is None or (limit is not None and trained >= limit) else int(trained)


def read_window(config: Mapping[str, Any], path: str) -> int | None:
    """Keys that a row sees, where the layers have a sliding window. Raises ModelLoadError where some only have."""
    kinds = set(config.get("layer_types") or ())
    if "sliding_attention" not in kinds:
        return None
    size = config.get("sliding_window")
    if len(kinds) > 1 or size is None:
        raise ModelLoadError(
            f"{path}: config.json has layer_types {sorted(kinds)} and sliding_window {size}; expected layers of one "
            f"kind and the window's size; such a head cannot be served"
        )
    return int(size)


def _read_fuse(
    weights: Weights, config: Mapping[str, Any], target: TargetFacts, shape: Geometry, count: int
) -> Callable[[Tensor], Tensor]:
    """States [T, C * D] -> [T, H]: optional norms, then ``fc``, which has no bias."""
    path, width = weights.path, target.hidden_size
    found = weights.shape(FUSE)[-1]
    if found != count * width:
        raise ModelLoadError(
            f"{path}: {FUSE} takes {found} features; expected {count} states of the target, {count} x {width}; give "
            f"the layers that the head was trained on, or choose a head made for this target"
        )
    fc = weights.linear(weights.take(FUSE, shape.hidden, found))
    whole = _wanted(weights, config, ("norm_before_fc",), "input_norm.weight")
    names = LEGACY_NORMS if f"{LEGACY_NORMS[0]}.weight" in weights else tuple(f"fc_norm.{i}" for i in range(count))
    each = _wanted(weights, config, ("fc_norm", "use_aux_norm"), f"{names[0]}.weight")
    if whole and each:
        raise ModelLoadError(
            f"{path}: norm_before_fc and fc_norm together; expected one of them; their order is unknown"
        )
    if whole:
        norm = rms_norm(weights, "input_norm.weight", found, shape.eps)
        return lambda taps: fc(norm(taps))
    if not each:
        return fc
    if len(names) != count:
        raise ModelLoadError(f"{path}: {', '.join(names)} are norms of 3 states; the head reads {count}")
    norms = [rms_norm(weights, f"{name}.weight", width, shape.eps) for name in names]

    def fuse(taps: Tensor) -> Tensor:
        return fc(torch.cat([norm(part) for norm, part in zip(norms, taps.split(width, 1), strict=True)], 1))

    return fuse


def _wanted(weights: Weights, config: Mapping[str, Any], keys: tuple[str, ...], tensor: str) -> bool:
    """Whether a norm is part of the head: as the configuration says, or as the file holds it. A file that contradicts
    its configuration is caught by strictness, here or in ``Weights.finish``."""
    said = flag(config, *keys)
    return tensor in weights if said is None else said


def _read_plain(weights: Weights, target: TargetFacts, shape: Geometry) -> Callable[[Tensor], Tensor]:
    """One state, the target's last: as it is, or through ``fc`` where the file holds one or widths differ."""
    if FUSE in weights or shape.hidden != target.hidden_size:
        return weights.linear(weights.take(FUSE, shape.hidden, target.hidden_size))
    return lambda taps: taps


def _read_more(weights: Weights, shape: Geometry) -> tuple[DecoderLayer, ...]:
    """Layers behind the first. Engines disagree which norm stands before their attention; the file must tell."""
    indices = sorted({int(m[1]) for name in weights.names if (m := re.match(r"layers\.(\d+)\.", name)) and m[1] != "0"})
    layers: list[DecoderLayer] = []
    for index in indices:
        prefix = f"layers.{index}."
        norms = [n for n in ("input_layernorm", "hidden_norm") if f"{prefix}{n}.weight" in weights]
        if len(norms) != 1:
            raise ModelLoadError(
                f"{weights.path}: {prefix} holds {' and '.join(norms) or 'no norm before attention'}; expected exactly "
                f"one of input_layernorm and hidden_norm; heads of several layers are read differently by every engine"
            )
        layers.append(DecoderLayer(weights, prefix, len(layers) + 1, shape, input_norm=norms[0]))
    return tuple(layers)
