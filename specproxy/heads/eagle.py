"""EAGLE-1 and EAGLE-2 (Li et al., arXiv 2401.15077, 2406.16858): the same weights; EAGLE-2 only drafts other trees.

Forward, entry of position p (``eagle/model/cnets1.py``):

    x = fc(cat[embed(token p + 1), h])     h: the target's state behind its final norm; later the head's own output
    x = layers(x)                          Llama's; the first has no norm before attention
    scores = target's output(x); next h = x

Shapes: T entries, N rows that guess, D width of target and head, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.base import HeadSpec, HeadStep, TargetFacts
from specproxy.heads.blocks import DecoderLayer, Geometry, read_geometry
from specproxy.heads.eagle3 import read_trained
from specproxy.heads.readings import NOWHERE, Origin
from specproxy.heads.tables import check_vocabulary, check_width, lookup, read_embedding
from specproxy.heads.weights import Weights
from specproxy.kernels.attention import Attention
from specproxy.kernels.paged import KVBuffers
from specproxy.models.base import FINAL


class EagleHead:
    """RecurrentHead of EAGLE-1 and EAGLE-2, over all of ``weights``."""

    def __init__(
        self, weights: Weights, config: Mapping[str, Any], target: TargetFacts, origin: Origin = NOWHERE
    ) -> None:
        """``config``: the head's. Takes every tensor it has a place for. Raises ModelLoadError."""
        path = weights.path
        shape = read_geometry(config, target, path)
        check_width(path, shape.hidden, target)
        check_vocabulary(path, config, target)
        self._embed = lookup(read_embedding(weights, target, shape.hidden), target)
        self._output = target.head
        self._fc = weights.linear(
            weights.take("fc.weight", shape.hidden, 2 * shape.hidden), _read_bias(weights, config)
        )
        self._layers = _read_layers(weights, shape)
        self._rotary = shape.rotary
        self.spec = HeadSpec(
            kind="eagle",
            hidden=(FINAL,),
            layers=(shape.kv,) * len(self._layers),
            steps=None,
            window=read_trained(config, target),
            ids=None,
            fingerprint=weights.fingerprint(sorted(config.items(), key=lambda item: item[0])),
            reading="; ".join(["the target's final state", *origin.notes]),
            verifier=origin.verifier,
            group=shape.group,
        )

    def fuse(self, taps: Tensor) -> Tensor:
        """See RecurrentHead.fuse: one state, taken as it is."""
        return taps

    def step(
        self, ids: Tensor, hidden: Tensor, positions: Tensor, plan: Attention, kv: KVBuffers, module: int = 0
    ) -> HeadStep:
        """See RecurrentHead.step; there is one module."""
        turn = self._rotary.at(positions)
        x = self._fc(torch.cat([self._embed(ids), hidden], 1))
        for layer in self._layers:
            x, delta = layer(x, turn, plan, kv)
            x = x + delta
        return HeadStep(x, x)

    def logits(self, features: Tensor, module: int = 0) -> Tensor:
        """See RecurrentHead.logits."""
        return self._output(features)


def _read_bias(weights: Weights, config: Mapping[str, Any]) -> Tensor | None:
    """The bias [H] of ``fc``, which is there unless the configuration says otherwise."""
    if config.get("bias") is False:
        return None
    if "fc.bias" not in weights:
        raise ModelLoadError(
            f'{weights.path}: tensor fc.bias is missing; config.json has no "bias": false, and without it EAGLE-1/2 '
            f"heads have one"
        )
    return weights.take("fc.bias", -1)


def _read_layers(weights: Weights, shape: Geometry) -> list[DecoderLayer]:
    indices = {int(m[1]) for name in weights.names if (m := re.match(r"layers\.(\d+)\.", name))}
    return [
        DecoderLayer(weights, f"layers.{i}.", i, shape, input_norm="input_layernorm" if i else None)
        for i in range(len(indices))
    ]
