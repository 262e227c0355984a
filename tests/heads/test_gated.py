"""Gated attention against Qwen3-Next's decoder layer as transformers has it, and norms stored as offsets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specproxy.heads.blocks import ResidualNorm, SwiGLU, read_geometry
from specproxy.heads.gated import GatedAttention, make_offset_norm
from specproxy.heads.moe import MixtureOfExperts
from specproxy.heads.mtp_families import Layer
from tests.heads.mtp_checkpoints import QWEN, H, varied
from tests.heads.mtp_stock import PREFIX, TOLERANCE, entries, facts, our_output, randomised, stock_output, stock_weights

CASES: dict[str, dict[str, Any]] = {
    "as published": {},
    "weights as they come": {"norm_topk_prob": False},
    "with biases": {"attention_bias": True},
    "dense": {"mlp_only_layers": [3]},
}


@pytest.mark.parametrize("case", CASES)
def test_layer_is_transformers(case: str) -> None:
    """Qwen3-Next's layer with full attention gives what transformers' gives."""
    from transformers.models.qwen3_next.modeling_qwen3_next import (
        Qwen3NextConfig,
        Qwen3NextDecoderLayer,
        Qwen3NextRotaryEmbedding,
    )

    config = varied(QWEN, **CASES[case]).config
    stock_config = Qwen3NextConfig(
        **config | {"num_hidden_layers": 4}, attn_implementation="eager", experts_implementation="eager"
    )
    stock = randomised(Qwen3NextDecoderLayer(stock_config, layer_idx=3))
    x = entries()
    theirs = stock_output(stock, Qwen3NextRotaryEmbedding(stock_config), x)
    weights, shape = stock_weights(stock), read_geometry(config, facts(), "stock")
    layer = Layer(
        input_norm=make_offset_norm(weights.take(f"{PREFIX}input_layernorm.weight", H), shape.eps),
        attention=GatedAttention(weights, f"{PREFIX}self_attn.", 0, shape),
        mlp_norm=ResidualNorm(make_offset_norm(weights.take(f"{PREFIX}post_attention_layernorm.weight", H), shape.eps)),
        mlp=SwiGLU(weights, f"{PREFIX}mlp.", shape)
        if "mlp_only_layers" in config
        else MixtureOfExperts(weights, f"{PREFIX}mlp.", config, "softmax", shape),
    )
    weights.finish()
    torch.testing.assert_close(our_output(layer, shape.rotary, shape.kv, x), theirs, rtol=0, atol=TOLERANCE)


def test_small_offsets_are_not_lost() -> None:
    """A weight that would vanish beside one in bfloat16 still counts."""
    norm = make_offset_norm(torch.full((4,), 2.0**-10, dtype=torch.bfloat16), 1e-6)
    without = make_offset_norm(torch.zeros(4, dtype=torch.bfloat16), 1e-6)
    x = torch.tensor([[1.0, -2.0, 3.0, 0.5]], dtype=torch.bfloat16)
    assert torch.ones(1).bfloat16() + 2.0**-10 == 1
    exact = x.double() / (x.double() ** 2).mean().sqrt() * (1 + 2.0**-10)
    torch.testing.assert_close(norm(x).double(), exact, rtol=2**-7, atol=0)
    assert norm(x.float()).double().sub(exact).abs().max() < 1e-5
    assert without(x).dtype == torch.bfloat16
