"""Decoder layers of transformers beside ours: same random weights, same entries, float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from specproxy.heads.base import TargetFacts
from specproxy.heads.mtp_families import Layer
from specproxy.heads.rotary import RotaryTable
from specproxy.heads.weights import Weights
from tests.heads.mtp_checkpoints import H, target_facts
from tests.heads.mtp_run import Run

T = 19
PREFIX = "layer."
TOLERANCE = 2e-5
"""Both compute in float32, in another order."""


def randomised(layer: nn.Module, seed: int = 0) -> nn.Module:
    """The layer with weights that keep a vector's length, and norms and biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in layer.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            tensor.copy_(values / tensor.shape[-1] ** 0.5)
        else:
            tensor.copy_(values * 0.3 if "norm" not in name else 0.3 * values + tensor.mean())
    return layer.eval()


def entries(seed: int = 7) -> Tensor:
    """What a layer takes [T, H]."""
    return torch.randn(T, H, generator=torch.Generator().manual_seed(seed))


def stock_output(layer: nn.Module, rotary: nn.Module, x: Tensor, window: int | None = None, **kwargs: Any) -> Tensor:
    """x [T, H] through a layer of transformers, causally, at positions 0 to T - 1."""
    index = torch.arange(T)
    seen = index[None] <= index[:, None]
    if window is not None:
        seen &= index[None] > index[:, None] - window
    mask = torch.zeros(1, 1, T, T).masked_fill(~seen, float("-inf"))
    with torch.no_grad():
        turn = rotary(x[None], index[None], **kwargs)
        out = layer(x[None], attention_mask=mask, position_embeddings=turn, position_ids=index[None])
    return (out[0] if isinstance(out, tuple) else out)[0]


def stock_weights(layer: nn.Module, **renamed: str) -> Weights:
    """Its tensors under PREFIX; parts of names replaced as ``renamed`` says."""
    tensors = {}
    for name, tensor in layer.state_dict().items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        tensors[PREFIX + name] = tensor
    return Weights("stock", tensors, torch.float32, "cpu")


def facts() -> TargetFacts:
    """A float32 target."""
    return target_facts(dtype=torch.float32)


class _Alone:
    """A layer as a head, so that it can be driven over pages: the hidden state goes in as it is."""

    def __init__(self, layer: Layer, rotary: RotaryTable, kv: Any) -> None:
        self._layer, self._rotary = layer, rotary
        self.spec: Any = type("Spec", (), {"layers": (kv,)})

    def step(self, ids: Tensor, hidden: Tensor, positions: Tensor, plan: Any, kv: Any, module: int) -> Tensor:
        x, delta = self._layer(hidden, self._rotary.at(positions), plan, kv)
        return x + delta


def our_output(layer: Layer, rotary: RotaryTable, kv: Any, x: Tensor) -> Tensor:
    """x [T, H] through a layer of ours, in two chunks, at positions 0 to T - 1."""
    run = Run(_Alone(layer, rotary, kv), torch.float32)  # type: ignore[arg-type]
    cut, positions = 6, torch.arange(T)
    first: Any = run.step(positions[:cut], x[:cut], positions[:cut])
    second: Any = run.step(positions[cut:], x[cut:], positions[cut:])
    return torch.cat([first, second])
