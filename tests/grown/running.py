"""The house models and what they are grown into, in float64, run by the lean layer loop.

transformers' norms compute in float32 whatever the model's type is; the lean loop's do not, so that two equal functions
differ by 1e-12 and not by 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specproxy.heads.base import TargetFacts
from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.kernels.plan import plan_attention
from specproxy.models.base import ModelSpec
from specproxy.models.fused import FusedModel
from specproxy.models.grown.shapes import SHAPES
from specproxy.models.grown.target import grow_target
from specproxy.models.loading import find_model

REAL = 8192
"""Ids of the house models."""

LENGTH = 28
PAGE = 16
ZERO = 1e-15
"""What the lean loop's norm makes of zeros: it takes the mean of [x, -x] off, which rounds to 1e-20."""


def house(role: str, dtype: torch.dtype) -> Any:
    """A house model as transformers has it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(find_model("house", role), dtype=dtype).requires_grad_(False)


def grown(role: str, shape: str, dtype: torch.dtype, fill: Any = "random") -> Any:
    """What it is grown into."""
    return grow_target(house(role, dtype), SHAPES[shape], "cpu", dtype, fill)


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal but for rounding."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def random_ids(length: int = LENGTH) -> Tensor:
    """Ids that the house models know."""
    return torch.randint(REAL, (length,), generator=torch.Generator().manual_seed(5))


class Lean:
    """``stock`` in the lean loop."""

    def __init__(self, stock: Any) -> None:
        config = stock.config
        layer = LayerShape(config.num_key_value_heads, config.head_dim, config.head_dim)
        spec = ModelSpec(
            model_type="llama",
            path_kind="fused",
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            max_len=256,
            dtype=stock.dtype,
            device="cpu",
            layers=(layer,) * config.num_hidden_layers,
            fingerprint="",
            eos_token_ids=(),
        )
        self.stock = stock
        self.model = FusedModel(stock, spec)

    @torch.inference_mode()
    def run(self, ids: Tensor, hidden: Sequence[int] = (), depth: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """Logits [T, V] of a text and the states that ``hidden`` names, of its first ``depth`` layers."""
        spec, count = self.model.spec, len(ids)
        pages = list(range(KVBuffers.RESERVED_PAGES, KVBuffers.RESERVED_PAGES + -(-count // PAGE)))
        kv = KVBuffers.allocate(spec.layers, pages[-1] + 1, PAGE, spec.dtype, "cpu")
        positions = torch.arange(count)
        plan = plan_attention([Span(0, count, 0, pages)], positions + pages[0] * PAGE, kv, exact=False)
        return self.model.forward(ids, positions, plan, kv, None, hidden, depth)

    def facts(self) -> TargetFacts:
        """What heads share with it."""
        spec = self.model.spec
        return TargetFacts(
            embed=self.model.embed,
            head=self.model.head,
            config=self.model.config,
            folder=find_model("house", "target"),
            hidden_size=spec.hidden_size,
            num_layers=len(spec.layers),
            vocab_size=spec.vocab_size,
            dtype=spec.dtype,
            device="cpu",
        )
