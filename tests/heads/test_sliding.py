"""Sliding-window attention against MiMo-V2's decoder layer as transformers has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specproxy.errors import ModelLoadError
from specproxy.heads.blocks import SwiGLU, residual_norm, rms_norm
from specproxy.heads.mtp_families import Layer
from specproxy.heads.sliding import SlidingAttention, read_sliding_geometry
from tests.heads.mtp_checkpoints import MIMO_V2, H, target_facts, varied
from tests.heads.mtp_stock import PREFIX, TOLERANCE, entries, facts, our_output, randomised, stock_output, stock_weights

STOCK: dict[str, Any] = {
    "hidden_size": H,
    "vocab_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "v_head_dim": 8,
    "sliding_window": 7,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "layer_types": ["full_attention", "sliding_attention"],
    "mlp_layer_types": ["dense", "dense"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.334},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.334},
    },
}


@pytest.mark.parametrize("bias", [False, True])
def test_layer_is_transformers(bias: bool) -> None:
    """MiMo-V2's layer with sinks gives what transformers' gives, read from either kind of configuration."""
    from transformers.models.mimo_v2_flash.modeling_mimo_v2_flash import (
        MiMoV2FlashConfig,
        MiMoV2FlashDecoderLayer,
        MiMoV2FlashRotaryEmbedding,
    )

    stock_config = MiMoV2FlashConfig(**STOCK, attention_bias=bias, attn_implementation="eager")
    stock = randomised(MiMoV2FlashDecoderLayer(stock_config, layer_idx=1))
    x = entries()
    rotary = MiMoV2FlashRotaryEmbedding(stock_config)
    theirs = stock_output(stock, rotary, x, window=7, layer_type="sliding_attention")
    for config in (MIMO_V2.config, STOCK | {"attention_value_scale": stock_config.attention_value_scale}):
        weights = stock_weights(stock, sinks="attention_sink_bias", post_attention_layernorm="pre_mlp_layernorm")
        key_rows = weights.shape(f"{PREFIX}self_attn.k_proj.weight")[0]
        shape = read_sliding_geometry(config, facts(), "stock", key_rows)
        layer = Layer(
            input_norm=rms_norm(weights, f"{PREFIX}input_layernorm.weight", H, 1e-5),
            attention=SlidingAttention(weights, f"{PREFIX}self_attn.", 0, shape),
            mlp_norm=residual_norm(weights, f"{PREFIX}pre_mlp_layernorm.weight", H, 1e-5),
            mlp=SwiGLU(weights, f"{PREFIX}mlp.", shape.common),
        )
        weights.finish()
        out = our_output(layer, shape.common.rotary, shape.kv, x)
        torch.testing.assert_close(out, theirs, rtol=0, atol=TOLERANCE)


def test_window_must_be_given() -> None:
    """Sliding attention without a window is refused."""
    with pytest.raises(ModelLoadError, match="no sliding_window_size"):
        read_sliding_geometry(varied(MIMO_V2, sliding_window=...).config, target_facts(), "x", 24)


def test_keys_must_be_whole_heads() -> None:
    """Rows of the key projection that are no whole number of heads are refused."""
    with pytest.raises(ModelLoadError, match="k_proj has 25 rows"):
        read_sliding_geometry(MIMO_V2.config, target_facts(), "x", 25)
