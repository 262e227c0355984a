"""Where the parts of a small Llama layer stand in a large one, so that the large one computes the same.

One invariant holds: what a projection reads is exactly zero outside of the small model's values (one exception is named
below). So a weight needs the small one's values, zeros above and below them in the columns that they stand in, and
nothing elsewhere: a column that only ever meets zeros is free. Free weights are random, so that the memory moves real
bits; they are nine tenths of an 8B grown from a width of 384.

What is not copied as it is (h, H: small and large hidden width; w, W: small and large head width, W = r * w):

    RMSNorm     a mean over H in place of h: weight * sqrt(h / H), eps * h / H
    rotary      dimension i turns with i + w / 2 at theta^(-2i / w); r * i of W turns as fast, so i -> r * i and
                i + w / 2 -> W / 2 + r * i
    attention   scores are divided by sqrt(W) in place of sqrt(w): query rows * sqrt(r)
    heads       query head g of KV head k goes to slot g of KV head k, however many slots there are; the slots behind
                have queries of zero, return the mean of the values, and meet zeros in the output projection

In exact arithmetic all of this is the identity; in floating point the two factors that are no power of two round each
weight that they touch once, and sums run over more terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.models.grown.shapes import Shape

Fill = Literal["random", "zero"]

SCALE = 0.02
"""Standard deviation of random weights, that of an untrained Llama."""


@dataclass(frozen=True)
class Sizes:
    """Of a small layer."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float


def read_sizes(config: Mapping[str, Any], where: str) -> Sizes:
    """Sizes in a Llama-style ``config``. ``where``: for messages. Raises ModelLoadError for what is not Llama's layer,
    or scales its rotary embedding, which no placement of dimensions can follow."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    biased = [key for key in ("attention_bias", "mlp_bias") if config.get(key)]
    if kind != "default" or biased or config.get("hidden_act", "silu") != "silu":
        raise ModelLoadError(
            f"{where}: rope_type {kind}, hidden_act {config.get('hidden_act')}, {' and '.join(biased) or 'no bias'}; "
            f"only a Llama layer with default rotary embedding, silu and no bias can be grown"
        )
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    return Sizes(
        hidden=hidden,
        intermediate=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        vocab=int(config["vocab_size"]),
        eps=float(config.get("rms_norm_eps") or 1e-6),
    )


class Filler:
    """Makes tensors of free weights, of ``dtype`` on ``device``."""

    def __init__(self, fill: Fill, device: str | torch.device, dtype: torch.dtype) -> None:
        self._random = fill == "random"
        self._device, self._dtype = torch.device(device), dtype
        self._generator = torch.Generator(self._device).manual_seed(0)

    def make(self, *shape: int) -> Tensor:
        """The next tensor; filled in place, so that there is never a second one."""
        made = torch.empty(shape, dtype=self._dtype, device=self._device)
        return made.normal_(0, SCALE, generator=self._generator) if self._random else made.zero_()


class Placement:
    """Places the weights of a layer of ``small`` sizes in one of the ``large`` shape.

    Raises ModelLoadError where the small one does not fit.
    """

    def __init__(self, small: Sizes, large: Shape, where: str) -> None:
        _check(small, large, where)
        self.eps = small.eps * small.hidden / large.hidden
        self._norm_factor = math.sqrt(small.hidden / large.hidden)
        self._query_factor = math.sqrt(large.head_dim / small.head_dim)
        self._small, self._large = small, large
        group, slots = small.heads // small.kv_heads, large.heads // large.kv_heads
        hidden, inner = torch.arange(small.hidden), torch.arange(small.intermediate)
        keys = self._dimensions(range(small.kv_heads))
        queries = self._dimensions([key * slots + query for key in range(small.kv_heads) for query in range(group)])
        self._hidden = hidden
        self._rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": inner, "up_proj": inner}
        self._columns = {"o_proj": queries, "down_proj": inner}
        # A query head without a counterpart still returns a mean of its KV head's values, so all of them count.
        self._live = {"o_proj": self._dimensions(range(small.kv_heads * slots))}

    def matrix(self, name: str, weight: Tensor | None, out: Tensor) -> Tensor:
        """Place projection ``name`` of a layer in ``out``, which holds free weights; ``out`` again.

        ``weight`` ``None``: the layer has no counterpart in the small model and adds nothing: what stands before its
        activations reads nothing, and what stands behind them meets zeros alone.
        """
        columns = self._columns.get(name)
        if weight is None:
            return out if columns is not None else out.index_fill_(1, self.blocks(1).to(out.device), 0)
        if columns is None:
            columns = self.blocks(weight.shape[1] // self._small.hidden)
        factor = self._query_factor if name == "q_proj" else 1.0
        return place(out, weight, self._rows.get(name, self._hidden), columns, factor, self._live.get(name))

    def norm(self, weight: Tensor, out: Tensor) -> Tensor:
        """Place the weight [C * h] of RMSNorms over C states in ``out`` [C * H]; ``out`` again."""
        columns = self.blocks(weight.shape[0] // self._small.hidden)
        out[columns.to(out.device)] = _scaled(weight, self._norm_factor, out)
        return out

    def blocks(self, count: int) -> Tensor:
        """Columns in which ``count`` concatenated states stand."""
        return torch.cat([self._hidden + block * self._large.hidden for block in range(count)])

    def _dimensions(self, heads: Iterable[int]) -> Tensor:
        """Dimensions of the large model's ``heads``, in the order in which the small model has its own."""
        small, large = self._small.head_dim, self._large.head_dim
        half = torch.arange(small // 2) * (large // small)
        one = torch.cat([half, half + large // 2])
        return torch.cat([one + head * large for head in heads])


def place(
    out: Tensor, weight: Tensor, rows: Tensor, columns: Tensor, factor: float = 1.0, live: Tensor | None = None
) -> Tensor:
    """``weight`` [R, C] * factor at ``rows`` [R] and ``columns`` [C] of ``out``, zeros in the rest of these columns, or
    of ``live`` where more of them meet values that are not zero; ``out`` again. The product is rounded once, from
    float64."""
    rows, columns = rows.to(out.device), columns.to(out.device)
    out.index_fill_(1, columns if live is None else live.to(out.device), 0)
    out[rows[:, None], columns] = _scaled(weight, factor, out)
    return out


def _scaled(weight: Tensor, factor: float, out: Tensor) -> Tensor:
    return (weight.to(out.device, torch.float64) * factor).to(out.dtype)


def _check(small: Sizes, large: Shape, where: str) -> None:
    """Raises ModelLoadError naming every size that does not fit."""
    group, slots = small.heads // small.kv_heads, large.heads // large.kv_heads
    pairs = {
        "hidden_size": (small.hidden, large.hidden),
        "intermediate_size": (small.intermediate, large.intermediate),
        "num_key_value_heads": (small.kv_heads, large.kv_heads),
        "query heads of a KV head": (group, slots),
        "vocab_size": (small.vocab, large.vocab),
    }
    wrong = [f"{name} {have} does not fit {room}" for name, (have, room) in pairs.items() if have > room]
    if large.head_dim % small.head_dim:
        wrong.append(f"head_dim {small.head_dim} does not divide {large.head_dim}")
    if wrong:
        raise ModelLoadError(f"{where}: {'; '.join(wrong)}; choose a larger shape, or a smaller model")
