"""A Llama-family target on a GPU: nine launches a layer, none of which lets one row see another.

At one row a large model's step is the reading of its weights, and what stands between that and the memory's speed is
launches: transformers' own modules need some 38 a layer. Here norm and residual are one, rotary embedding and the write
of keys and values are one, gate, up and their product are one (``kernels/layer_parts.py``,
``kernels/small_product.py``). Prompt chunks are wide enough for the library's products.

Shapes: T rows, N rows that sample, D hidden width, I intermediate width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specproxy.kernels.attention import Attention
from specproxy.kernels.layer_parts import HeadNorms, Turn, add_norm, rotate_and_store
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.small_product import MAX_ROWS, gated_product, gated_reference, product, product_reference
from specproxy.models.base import FINAL, ModelSpec
from specproxy.models.fused import FusedModel
from specproxy.models.linear import Linear
from specproxy.models.norm import Norm
from specproxy.models.sharding import Group

KERNEL_TYPES = (torch.bfloat16, torch.float16)
"""Types whose products have a kernel of ours; float32 goes through the library."""


class DeviceLinear:
    """x [T, K] -> [T, N]: our kernel for few rows, the library for many."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""
        few = x.shape[0] <= MAX_ROWS and x.dtype in KERNEL_TYPES
        return (product if few else product_reference)(x, self.weight, self.bias)


class DeviceNorm:
    """RMSNorm [T, D] -> [T, D]."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """The norm alone."""
        return add_norm(x, None, self.weight, self.eps).normed


class DeviceModel(FusedModel):
    """StepModel over the weights of a stock Llama-family module, with one launch for each part of a layer."""

    def __init__(self, stock: Any, spec: ModelSpec, group: Group | None = None) -> None:
        super().__init__(stock, replace(spec, path_kind="device"), DeviceLinear, DeviceNorm, group)
        self._turn = Turn(self._cos[:, 0], self._sin[:, 0])
        self._norms = [
            None if layer.q_norm is None or layer.k_norm is None else HeadNorms(layer.q_norm, layer.k_norm, self._eps)
            for layer in self._layers
        ]

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        plan: Attention,
        kv: KVBuffers,
        rows: Tensor | None,
        hidden: Sequence[int] = (),
        depth: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """See FusedModel.forward."""
        stream, delta = self.embed(ids), None
        taps: dict[int, Tensor] = {}
        for index, layer in enumerate(self._layers[:depth]):
            stream, normed = add_norm(stream, delta, _weight(layer.input_norm), self._eps)
            if index in hidden:
                taps[index] = stream
            q = rotate_and_store(
                layer.qkv(normed), positions, plan.slots, self._turn, kv, index, self._heads, self._norms[index]
            )
            mixed = plan.attend(kv, index, q, layer.scoring)
            stream, normed = add_norm(stream, layer.o(mixed), _weight(layer.post_norm), self._eps)
            delta = layer.down(_gated(layer.gate_up, normed))
        _, normed = add_norm(stream, delta, _weight(self._norm), self._eps)
        if FINAL in hidden:
            taps[FINAL] = normed
        return self.head(normed if rows is None else normed.index_select(0, rows)), [taps[i] for i in hidden]


def _weight(norm: Norm) -> Tensor:
    if not isinstance(norm, DeviceNorm):
        raise TypeError(f"expected a DeviceNorm, got {type(norm).__name__}")
    return norm.weight


def _gated(gate_up: Linear, x: Tensor) -> Tensor:
    """silu(gate x) * up x [T, I]; a bias takes the way through the library."""
    if not isinstance(gate_up, DeviceLinear):
        raise TypeError(f"expected a DeviceLinear, got {type(gate_up).__name__}")
    if x.shape[0] <= MAX_ROWS and x.dtype in KERNEL_TYPES:
        return gated_product(x, gate_up.weight)
    return gated_reference(x, gate_up.weight)
