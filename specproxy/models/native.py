"""A Llama-family target whose step is one call into C++ (``cpp/``), bit by bit independent of its neighbours.

At one row a small model's step is dispatch: torch's eager loop takes twice as long as its products, and those read
weights at a third of the memory's speed. The C++ step does the same work in one call: weights packed for vdpbf16ps and
read once for eight rows, the residual stream in float32, attention by row over pages. A row's numbers are sums over
its own inputs in one order, so its bits do not depend on how many rows there are, where it stands, or how many threads
run; the engine's self-test still has to find that so.

It rounds less often than the eager loop, so its bits are other ones: a model runs on one of them, never on both.

Shapes: T rows, N rows that sample, D hidden width, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specproxy.kernels.attention import Attention
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import StepPlan
from specproxy.models import library
from specproxy.models.base import FINAL, ModelSpec, StepModel
from specproxy.models.fused import FusedModel
from specproxy.models.library import Library, native_library
from specproxy.models.linear import Linear
from specproxy.models.native_parts import (
    PANEL,
    NativeAttention,
    NativeLinear,
    NativeNorm,
    NativeParts,
    heads_fit,
    native_attention,
    rows_of,
)
from specproxy.models.norm import Norm

MOST_BYTES = 2**30
"""Weights beyond which a step is memory traffic in either loop, and another packed copy would hurt."""


class NativeModel(FusedModel):
    """StepModel whose forward is the C++ step; over attention that is not planned (``RowAttention``) it is the eager
    loop around the same products."""

    def __init__(self, stock: Any, spec: ModelSpec, code: Library) -> None:
        weights = [stock.lm_head.weight, *(p for layer in stock.model.layers for p in layer.parameters())]
        parts = NativeParts(code, sum(weight.numel() for weight in weights))
        super().__init__(stock, replace(spec, path_kind="native", build=code.identity), parts.linear, parts.norm)
        self.code = code
        self._attentions = [self._attention_of(index) for index in range(len(self._layers))]
        self._structs = (library.Layer * len(self._layers))(*map(self._struct, range(len(self._layers))))
        self._model = library.Model(
            len(self._layers),
            self.spec.hidden_size,
            self._eps,
            self._embedding.data_ptr(),
            _weight(self._norm),
            _product(self.head),
            ctypes.addressof(self._structs),
        )

    def _attention_of(self, index: int) -> NativeAttention:
        layer, shape = self._layers[index], self.spec.layers[index]
        norms = None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)
        sizes = (self._heads, shape, shape.k_dim, self._eps, layer.scoring.window)
        attention = native_attention(layer.qkv, layer.o, norms, *sizes)
        if attention is None:
            raise TypeError(f"layer {index} does not fit the code, though its sizes do")
        attention.struct.cos, attention.struct.sin = self._cos.data_ptr(), self._sin.data_ptr()
        return attention

    def _struct(self, index: int) -> library.Layer:
        layer = self._layers[index]
        norms = (_weight(layer.input_norm), _weight(layer.post_norm))
        return library.Layer(*norms, self._attentions[index].struct, _product(layer.gate_up), _product(layer.down))

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
        if not isinstance(plan, StepPlan):
            return super().forward(ids, positions, plan, kv, rows, hidden, depth)
        count, spec, layers = len(ids), self.spec, len(self._layers)
        wanted = torch.arange(count) if rows is None else rows
        tapped = torch.tensor([layers if i == FINAL else i for i in hidden], dtype=torch.long)
        logits = torch.empty(len(wanted), spec.vocab_size, dtype=spec.dtype)
        states = torch.empty(len(hidden), count, spec.hidden_size, dtype=spec.dtype)
        buffers = (ctypes.c_void_p * layers)(*[buffer.data_ptr() for buffer in kv.layers])
        call = library.Call(
            rows_of(plan, positions),
            layers if depth is None else depth,
            len(wanted),
            len(hidden),
            ids.data_ptr(),
            wanted.data_ptr(),
            tapped.data_ptr(),
            ctypes.addressof(buffers),
            logits.data_ptr(),
            states.data_ptr(),
            torch.get_num_threads(),
        )
        self.code.run_step(ctypes.addressof(self._model), ctypes.addressof(call))
        return logits, list(states)


def native_model(model: StepModel, progress: Callable[[str], None]) -> NativeModel | None:
    """``model`` with a compiled step; ``None`` where it cannot have one, with the reason told to ``progress`` if it is
    the machine."""
    if not isinstance(model, FusedModel) or not _fits(model):
        return None
    code = native_library(progress)
    return None if code is None else NativeModel(model.stock, model.spec, code)


def _fits(model: FusedModel) -> bool:
    """Whether the code can run ``model``: whole, bf16 on CPU, widths in whole panels, and small enough to gain."""
    spec, config = model.spec, model.config
    widths = [spec.hidden_size, spec.vocab_size, config.intermediate_size]
    return (
        spec.device == "cpu"
        and spec.ranks == 1
        and spec.dtype == torch.bfloat16
        and all(width % PANEL == 0 for width in widths)
        and all(heads_fit(config.num_attention_heads, shape) for shape in spec.layers)
        and model.bytes() <= MOST_BYTES
    )


def _product(linear: Linear) -> library.Product:
    """The structure of a product that ``NativeModel`` made."""
    if not isinstance(linear, NativeLinear):
        raise TypeError(f"expected a NativeLinear, got {type(linear).__name__}")
    return linear.struct


def _weight(norm: Norm) -> int:
    """Where the weight of a norm is that ``NativeModel`` made."""
    if not isinstance(norm, NativeNorm):
        raise TypeError(f"expected a NativeNorm, got {type(norm).__name__}")
    return norm.weight.data_ptr()
