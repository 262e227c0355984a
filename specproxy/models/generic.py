"""Any causal language model of transformers whose state is a KV cache, as it is.

Our attention is registered under a name of its own per model instance, as a closure over the step at hand: some models
drop keyword arguments on the way down to their attention, a closure reaches it all the same. No mask is built for us;
who sees what is in the plan. The layout of each layer's KV is learnt from one recorded forward.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.kernels.attention import Attention, Scoring
from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.models.base import FINAL, ModelSpec
from specproxy.models.sharding import Group

_instance_numbers = itertools.count()


@dataclass
class _StepContext:
    """What the attention closure needs of the step that runs now. ``shapes`` and ``dtype``, of the keys, are filled
    while recording."""

    plan: Attention | None = None
    kv: KVBuffers | None = None
    shapes: dict[int, LayerShape] = field(default_factory=dict)
    dtype: torch.dtype | None = None


class GenericModel:
    """StepModel over an unmodified transformers module."""

    def __init__(self, stock: Any, spec: ModelSpec) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface

        self.stock = stock
        self.group: Group | None = None
        self.config = stock.config.get_text_config()
        self.embed = stock.get_input_embeddings()
        self.head = stock.get_output_embeddings()
        self._context = _StepContext()
        name = f"specproxy_{next(_instance_numbers)}"
        AttentionInterface.register(name, self._attention)
        AttentionMaskInterface.register(name, _no_mask)
        self._name = name
        with self.own_attention():
            layers = self._record()
        # Of a quantised module no parameter need be of the type that it computes in.
        self.spec = replace(spec, layers=layers, dtype=self._context.dtype or spec.dtype)

    @contextmanager
    def own_attention(self) -> Iterator[None]:
        """The stock module uses our attention inside this block, its own outside (audits)."""
        before = self.stock.config._attn_implementation  # noqa: SLF001 - set_attn_implementation has no getter
        self.stock.set_attn_implementation(self._name)
        try:
            yield
        finally:
            self.stock.set_attn_implementation(before)

    def _record(self) -> tuple[LayerShape, ...]:
        """Layer shapes in layer order, seen by running two tokens."""
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.stock.device)
        positions = torch.arange(2, device=self.stock.device)[None]
        self.stock(input_ids=ids, position_ids=positions, use_cache=False)
        shapes = self._context.shapes
        if sorted(shapes) != list(range(len(shapes))) or not shapes:
            raise ModelLoadError(
                f"{self.stock.config.model_type}: attention of layers {sorted(shapes)} went through the attention "
                "interface, expected every layer once; this architecture cannot be served by the engine"
            )
        return tuple(shapes[i] for i in range(len(shapes)))

    def products(self) -> list[tuple[Callable[[Tensor], Tensor], int]]:
        """See StepModel.products. Quantised products are not always nn.Linear; they all say how wide their input is."""
        found: dict[tuple[object, ...], tuple[Callable[[Tensor], Tensor], int]] = {}
        for module in self.stock.modules():
            width = getattr(module, "in_features", None)
            if isinstance(width, int):
                found[type(module), width, getattr(module, "out_features", None)] = (module, width)
        return list(found.values())

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        plan: Attention,
        kv: KVBuffers,
        rows: Tensor | None,
        hidden: Sequence[int] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """See StepModel.forward."""
        self._context.plan, self._context.kv = plan, kv
        self.stock.set_attn_implementation(self._name)
        layers = [self._output_of(state) for state in hidden]
        result = self.stock(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=rows if rows is not None else 0,
            **({"output_hidden_states": layers} if layers else {}),
        )
        self._context.plan = self._context.kv = None  # a step's buffers are not the model's to keep
        return result.logits[0], [result.hidden_states[layer][0] for layer in layers]

    def _output_of(self, state: int) -> int:
        """transformers counts outputs from layer 0, and gives the last one normed."""
        return len(self.spec.layers) - 1 if state == FINAL else state - 1

    def _attention(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **_ignored: object,
    ) -> tuple[Tensor, None]:
        """The registered function: query (1, Hq, T, Dk), key and value (1, Hk, T, D*) -> (1, T, Hq, Dv)."""
        layer, context = int(module.layer_idx), self._context
        count, heads, v_dim = query.shape[2], query.shape[1], value.shape[3]
        if context.plan is None or context.kv is None:
            context.shapes[layer] = LayerShape(key.shape[1], key.shape[3], v_dim)
            context.dtype = key.dtype
            return value.new_zeros(1, count, heads, v_dim), None
        rows = torch.cat([key[0].transpose(0, 1).reshape(count, -1), value[0].transpose(0, 1).reshape(count, -1)], 1)
        context.kv.write(layer, context.plan.slots, rows)
        out = context.plan.attend(
            context.kv,
            layer,
            query[0].transpose(0, 1).contiguous(),
            Scoring(scaling if scaling is not None else query.shape[3] ** -0.5, sliding_window, softcap, s_aux),
        )
        return out.view(1, count, heads, v_dim), None


def _no_mask(*_args: object, **_kwargs: object) -> None:
    """Masks are part of our attention plan."""
