"""Mixtures of experts as heads have them: DeepSeek-V3 and GLM-4.5 (sigmoid scores, groups), Qwen3-Next (softmax).

Experts run one after another, each over the rows that chose it; which ones there are is read back from the device.
Every sum has a fixed order, so a step repeated is the same to the bit.

Sources: DeepSeek-V3 (arXiv 2412.19437, section 2.1.2), and transformers' ``deepseek_v3`` and ``qwen3_next``.

Shapes: T rows, H hidden width, E experts, K experts a row, I width of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.blocks import Geometry, SwiGLU, need, product
from specproxy.heads.weights import Weights
from specproxy.models.linear import Linear


@dataclass(frozen=True)
class Routing:
    """How rows choose experts.

    ``scores``: sigmoid of each logit, or softmax over all. ``groups``, ``top_groups``: experts stand in groups, and a
    row may use the best few. ``normalise``: the chosen weights sum to one, before ``scale``.
    """

    scores: Literal["sigmoid", "softmax"]
    experts: int
    top_k: int
    groups: int = 1
    top_groups: int = 1
    normalise: bool = True
    scale: float = 1.0


def read_routing(config: Mapping[str, Any], scores: Literal["sigmoid", "softmax"], path: str) -> Routing:
    """Routing as a configuration of DeepSeek's, GLM's or Qwen's kind gives it. Raises ModelLoadError."""
    experts = config.get("n_routed_experts") or config.get("num_experts") or config.get("num_local_experts")
    if experts is None:
        raise ModelLoadError(f"{path}: config.json has no n_routed_experts or num_experts; the file holds experts")
    routing = Routing(
        scores=scores,
        experts=int(experts),
        top_k=int(need(config, "num_experts_per_tok", path)),
        groups=int(config.get("n_group") or 1),
        top_groups=int(config.get("topk_group") or 1),
        normalise=bool(config.get("norm_topk_prob", True)),
        scale=float(config.get("routed_scaling_factor") or 1.0),
    )
    usable = routing.experts // routing.groups * routing.top_groups
    if routing.experts % routing.groups or routing.top_groups > routing.groups or routing.top_k > usable:
        raise ModelLoadError(
            f"{path}: config.json has {routing.experts} experts in {routing.groups} groups, of which a row uses "
            f"{routing.top_groups}, and {routing.top_k} experts a row; expected as many experts as a row needs"
        )
    return routing


class Router:
    """Rows [T, H] -> expert ids [T, K] and their weights [T, K].

    Tensors: ``prefix`` + weight [E, H], optional e_score_correction_bias [E], which takes part in the choice alone.
    Scores are computed in float32 at least: in bf16 neighbours would tie.
    """

    def __init__(self, weights: Weights, prefix: str, hidden: int, routing: Routing) -> None:
        self._routing = routing
        wide, name = torch.float32, f"{prefix}e_score_correction_bias"
        self._weight = weights.take(f"{prefix}weight", routing.experts, hidden, at_least=wide)
        self._bias = weights.maybe(name, routing.experts, at_least=wide)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, H] -> ids [T, K], weights [T, K] in the dtype of x."""
        routing = self._routing
        logits = F.linear(x.to(self._weight.dtype), self._weight)
        scores = logits.sigmoid() if routing.scores == "sigmoid" else logits.softmax(-1)
        ids = self._choose(scores if self._bias is None else scores + self._bias)
        chosen = scores.gather(1, ids)
        if routing.normalise:
            chosen = chosen / (chosen.sum(-1, keepdim=True) + 1e-20)
        return ids, (chosen * routing.scale).to(x.dtype)

    def _choose(self, scores: Tensor) -> Tensor:
        """Ids [T, K] of the best; a group is as good as its best two."""
        routing = self._routing
        if routing.top_groups < routing.groups:
            grouped = scores.unflatten(1, (routing.groups, -1))
            worth = grouped.topk(min(2, grouped.shape[2]), -1).values.sum(-1)
            used = torch.zeros_like(worth, dtype=torch.bool)
            used.scatter_(1, worth.topk(routing.top_groups, -1).indices, True)
            scores = grouped.masked_fill(~used[:, :, None], float("-inf")).flatten(1)
        return scores.topk(routing.top_k, -1).indices


class Experts:
    """Rows [T, H], ids and weights [T, K] -> [T, H]: the weighted sum of what the chosen experts make of a row.

    Tensors: ``prefix`` + {e}.{gate,up,down}_proj.weight, or gate_up_proj [E, 2 * I, H] and down_proj [E, H, I].
    """

    def __init__(self, weights: Weights, prefix: str, count: int, hidden: int, width: int) -> None:
        if f"{prefix}gate_up_proj" in weights:
            self._gate_up = list(weights.take(f"{prefix}gate_up_proj", count, 2 * width, hidden))
            self._down = list(weights.take(f"{prefix}down_proj", count, hidden, width))
            return
        self._gate_up, self._down = [], []
        for expert in range(count):
            gate, up = (weights.take(f"{prefix}{expert}.{name}_proj.weight", width, hidden) for name in ("gate", "up"))
            self._gate_up.append(torch.cat([gate, up]))
            self._down.append(weights.take(f"{prefix}{expert}.down_proj.weight", hidden, width))

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """See the class."""
        out = torch.zeros_like(x)
        flat, order = ids.flatten(), ids.flatten().argsort(stable=True)
        start = 0
        for expert, count in enumerate(torch.bincount(flat, minlength=len(self._down)).tolist()):
            if not count:
                continue
            places = order[start : start + count]
            start += count
            rows = places // ids.shape[1]
            gate, up = F.linear(x[rows], self._gate_up[expert]).chunk(2, -1)
            made = F.linear(F.silu(gate) * up, self._down[expert])
            out.index_add_(0, rows, made * weights.flatten()[places, None])
        return out


class MixtureOfExperts:
    """Router and experts, plus experts that every row passes: x [T, H] -> [T, H].

    Tensors under ``prefix``: gate., experts., and shared_experts. (summed) or shared_expert. with
    shared_expert_gate.weight [1, H] (times the sigmoid of the gate), as found.
    """

    def __init__(
        self,
        weights: Weights,
        prefix: str,
        config: Mapping[str, Any],
        scores: Literal["sigmoid", "softmax"],
        shape: Geometry,
    ) -> None:
        routing = read_routing(config, scores, weights.path)
        width = int(need(config, "moe_intermediate_size", weights.path))
        self._router = Router(weights, f"{prefix}gate.", shape.hidden, routing)
        self._experts = Experts(weights, f"{prefix}experts.", routing.experts, shape.hidden, width)
        self._shared: SwiGLU | None = None
        self._shared_gate: Linear | None = None
        if f"{prefix}shared_experts.down_proj.weight" in weights:
            size = width * int(config.get("n_shared_experts") or 1)
            self._shared = SwiGLU(weights, f"{prefix}shared_experts.", replace(shape, intermediate=size))
        elif f"{prefix}shared_expert.down_proj.weight" in weights:
            size = int(need(config, "shared_expert_intermediate_size", weights.path))
            self._shared = SwiGLU(weights, f"{prefix}shared_expert.", replace(shape, intermediate=size))
            self._shared_gate = product(weights, prefix, ["shared_expert_gate"], [1], shape.hidden)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, H] -> [T, H]."""
        out = self._experts(x, *self._router(x))
        if self._shared is None:
            return out
        shared = self._shared(x)
        if self._shared_gate is not None:
            shared = shared * self._shared_gate(x).sigmoid()
        return out + shared
