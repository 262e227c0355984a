"""Latent attention against DeepSeek-V3's decoder layer as transformers has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specproxy.errors import ModelLoadError
from specproxy.heads.blocks import Geometry, SwiGLU, residual_norm, rms_norm
from specproxy.heads.mla import LatentAttention, read_latent_geometry
from specproxy.heads.moe import MixtureOfExperts
from specproxy.heads.mtp_families import Layer
from tests.heads.mtp_checkpoints import DEEPSEEK, H, target_facts, varied
from tests.heads.mtp_stock import PREFIX, TOLERANCE, entries, facts, our_output, randomised, stock_output, stock_weights

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 16}

CASES: dict[str, dict[str, Any]] = {
    "as published": {"rope_scaling": YARN | {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "yarn with two weights": {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}},
    "no yarn": {"rope_scaling": ...},
    "queries in one step": {"rope_scaling": ..., "q_lora_rank": None},
    "pairs apart": {"rope_scaling": ..., "rope_interleave": False},
    "with biases": {"rope_scaling": ..., "attention_bias": True},
    "dense": {"rope_scaling": ..., "first_k_dense_replace": 9},
    "queries in one step, with biases": {"rope_scaling": ..., "attention_bias": True, "q_lora_rank": None},
}


def build_layer(weights: Any, config: dict[str, Any]) -> tuple[Layer, Any]:
    """Our layer over the stock tensors, and its sizes."""
    shape = read_latent_geometry(config, facts(), "stock")
    common = Geometry(H, config["intermediate_size"], shape.heads, shape.heads, shape.width, 1e-6, shape.rotary)
    sparse = f"{PREFIX}mlp.gate.weight" in weights
    layer = Layer(
        input_norm=rms_norm(weights, f"{PREFIX}input_layernorm.weight", H, 1e-6),
        attention=LatentAttention(weights, f"{PREFIX}self_attn.", 0, shape),
        mlp_norm=residual_norm(weights, f"{PREFIX}post_attention_layernorm.weight", H, 1e-6),
        mlp=MixtureOfExperts(weights, f"{PREFIX}mlp.", config, "sigmoid", common)
        if sparse
        else SwiGLU(weights, f"{PREFIX}mlp.", common),
    )
    weights.finish()
    return layer, shape


@pytest.mark.parametrize("case", CASES)
def test_layer_is_transformers(case: str) -> None:
    """DeepSeek-V3's layer, with its experts, gives what transformers' gives."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
        DeepseekV3Config,
        DeepseekV3DecoderLayer,
        DeepseekV3RotaryEmbedding,
    )

    config = varied(DEEPSEEK, **CASES[case]).config
    stock_config = DeepseekV3Config(**config, attn_implementation="eager", experts_implementation="eager")
    stock = randomised(DeepseekV3DecoderLayer(stock_config, layer_idx=2))
    x = entries()
    theirs = stock_output(stock, DeepseekV3RotaryEmbedding(stock_config), x)
    layer, shape = build_layer(stock_weights(stock), config)
    torch.testing.assert_close(our_output(layer, shape.rotary, shape.kv, x), theirs, rtol=0, atol=TOLERANCE)


def test_values_may_be_narrower_than_keys() -> None:
    """Expanded keys are rotated and plain halves wide, values as the configuration says."""
    kv = read_latent_geometry(DEEPSEEK.config, target_facts(), "x").kv
    assert (kv.heads, kv.k_dim, kv.v_dim) == (4, 14, 5)


@pytest.mark.parametrize("key", ["kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"])
def test_sizes_must_be_given(key: str) -> None:
    """A configuration without one of the latent sizes is refused by the name of the key."""
    with pytest.raises(ModelLoadError, match=f"no {key}"):
        read_latent_geometry(varied(DEEPSEEK, **{key: ...}).config, target_facts(), "x")
