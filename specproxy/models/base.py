"""What the engine asks of a model: one ragged forward over paged KV.

Shapes: T rows of a step, N rows that sample, V vocabulary, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from specproxy.kernels.attention import Attention
from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.models.sharding import Group

FINAL = -1
"""A hidden state: the one behind the final norm. i >= 1 means the residual stream after i layers, not normed."""


@dataclass(frozen=True)
class ModelSpec:
    """Facts about a loaded model. ``vocab_size`` is the width of its logits; ``max_len`` its context in tokens;
    ``build`` the identity of compiled code that runs it; ``ranks`` how many processes share it, ``layers`` being one's
    part."""

    model_type: str
    path_kind: str
    vocab_size: int
    hidden_size: int
    max_len: int
    dtype: torch.dtype
    device: str
    layers: tuple[LayerShape, ...]
    fingerprint: str
    eos_token_ids: tuple[int, ...]
    build: str = ""
    ranks: int = 1

    @property
    def captured(self) -> bool:
        """Whether its steps are captured in CUDA graphs."""
        return self.path_kind == "device" and self.device.startswith("cuda")


class StepModel(Protocol):
    """A model as the runner sees it. ``config``: its transformers configuration (of the text part). ``stock``:
    transformers' own module over the same weights, for audits. ``group``: the processes that share it, ``None`` where
    it is whole."""

    spec: ModelSpec
    config: Any
    stock: Any
    group: Group | None

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [T, D] of ids [T], as the first layer takes them."""
        ...

    def head(self, states: Tensor) -> Tensor:
        """Logits [N, V] of states [N, D] behind the final norm."""
        ...

    def products(self) -> list[tuple[Callable[[Tensor], Tensor], int]]:
        """Every row-wise product and norm of the model, one for each distinct shape, with the width of its input."""
        ...

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        plan: Attention,
        kv: KVBuffers,
        rows: Tensor | None,
        hidden: Sequence[int] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the rows ids [T], positions [T] (int64), writing KV to ``plan.slots``.

        Returns logits [N, V] of ``rows`` [N] (all rows when ``None``), in the model's dtype, and the states [T, D] of
        all rows that ``hidden`` names: 1 <= i < number of layers, or FINAL.
        """
        ...


def query_group(model: StepModel) -> int:
    """Query heads that share a key head, in the layer where most do."""
    heads = int(model.config.num_attention_heads) // model.spec.ranks
    return max(1, heads // min(layer.heads for layer in model.spec.layers))
