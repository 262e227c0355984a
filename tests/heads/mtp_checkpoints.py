"""Checkpoints with MTP modules as they are published, in small: key tables, random weights, folders.

The key tables are written by hand from the published files, not from what the loaders take.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from specproxy.heads.base import RecurrentHead, TargetFacts
from specproxy.heads.mtp import build
from specproxy.heads.mtp_files import dequantised, files, wanted
from specproxy.heads.weights import Weights, read_tensors

H, V, LAYERS = 32, 64, 2
"""Width, vocabulary and layers of the target that all checkpoints belong to."""

Shapes = dict[str, tuple[int, ...]]

BASE: dict[str, Any] = {
    "hidden_size": H,
    "vocab_size": V,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Checkpoint:
    """``shapes``: of the tensors of module i. ``shared``: of tensors that all modules share. ``centre``: what norms are
    near to."""

    config: dict[str, Any]
    shapes: Callable[[int, dict[str, Any]], Shapes]
    shared: Callable[[], Shapes] = dict
    centre: float = 1.0


def _swiglu(prefix: str, width: int) -> Shapes:
    gate_up = {f"{prefix}.{name}_proj.weight": (width, H) for name in ("gate", "up")}
    return {**gate_up, f"{prefix}.down_proj.weight": (H, width)}


def _grouped(prefix: str, config: dict[str, Any], *, bias: bool, norms: bool, gated: bool = False) -> Shapes:
    width = config.get("head_dim") or H // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    rows = {"q_proj": queries * (2 if gated else 1), "k_proj": keys, "v_proj": keys}
    shapes: Shapes = {f"{prefix}.{name}.weight": (count, H) for name, count in rows.items()}
    shapes[f"{prefix}.o_proj.weight"] = (H, queries)
    if bias:
        shapes |= {f"{prefix}.{name}.bias": (count,) for name, count in rows.items()}
    if norms:
        shapes |= {f"{prefix}.{name}_norm.weight": (width,) for name in "qk"}
    return shapes


def _experts(prefix: str, count: int, width: int, *, fused: bool = False) -> Shapes:
    if fused:
        return {
            f"{prefix}.experts.gate_up_proj": (count, 2 * width, H),
            f"{prefix}.experts.down_proj": (count, H, width),
            f"{prefix}.gate.weight": (count, H),
        }
    shapes: Shapes = {f"{prefix}.gate.weight": (count, H)}
    for expert in range(count):
        shapes |= _swiglu(f"{prefix}.experts.{expert}", width)
    return shapes


def _sparse(prefix: str, config: dict[str, Any]) -> Shapes:
    """DeepSeek's and GLM's experts."""
    width = config["moe_intermediate_size"]
    return {
        **_experts(prefix, config["n_routed_experts"], width),
        f"{prefix}.gate.e_score_correction_bias": (config["n_routed_experts"],),
        **_swiglu(f"{prefix}.shared_experts", width * config["n_shared_experts"]),
    }


def _vectors(prefix: str, *names: str) -> Shapes:
    return {f"{prefix}.{name}.weight": (H,) for name in names}


def _mimo(index: int, config: dict[str, Any]) -> Shapes:
    at = f"model.mtp_layers.{index}"
    norms = ("token_layernorm", "hidden_layernorm", "final_layernorm", "input_layernorm", "post_attention_layernorm")
    return {
        **_vectors(at, *norms),
        f"{at}.input_proj.weight": (H, 2 * H),
        **_grouped(f"{at}.self_attn", config, bias=config["attention_bias"], norms=False),
        **_swiglu(f"{at}.mlp", config["intermediate_size"]),
    }


def _mimo_v2(index: int, config: dict[str, Any]) -> Shapes:
    at = f"model.mtp.layers.{index}"
    heads, keys = config["swa_num_attention_heads"], config["swa_num_key_value_heads"]
    width, value = config["swa_head_dim"], config["swa_v_head_dim"]
    shapes = {
        **_vectors(at, "enorm", "hnorm", "final_layernorm", "input_layernorm", "pre_mlp_layernorm"),
        f"{at}.eh_proj.weight": (H, 2 * H),
        f"{at}.self_attn.q_proj.weight": (heads * width, H),
        f"{at}.self_attn.k_proj.weight": (keys * width, H),
        f"{at}.self_attn.v_proj.weight": (keys * value, H),
        f"{at}.self_attn.o_proj.weight": (H, heads * value),
        **_swiglu(f"{at}.mlp", config["intermediate_size"]),
    }
    if config["add_swa_attention_sink_bias"]:
        shapes[f"{at}.self_attn.attention_sink_bias"] = (heads,)
    return shapes


def _next_layer(index: int, config: dict[str, Any]) -> Shapes:
    at = f"model.layers.{LAYERS + index}"
    norms = ("enorm", "hnorm", "shared_head.norm", "input_layernorm", "post_attention_layernorm")
    return {
        **_vectors(at, *norms),
        f"{at}.eh_proj.weight": (H, 2 * H),
        f"{at}.embed_tokens.weight": (V, H),
        f"{at}.shared_head.head.weight": (V, H),
    }


def _deepseek(index: int, config: dict[str, Any]) -> Shapes:
    at = f"model.layers.{LAYERS + index}"
    heads, rank, latent = config["num_attention_heads"], config["q_lora_rank"], config["kv_lora_rank"]
    rope, nope, value = config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["v_head_dim"]
    shapes: Shapes = {
        f"{at}.self_attn.kv_a_proj_with_mqa.weight": (latent + rope, H),
        f"{at}.self_attn.kv_a_layernorm.weight": (latent,),
        f"{at}.self_attn.kv_b_proj.weight": (heads * (nope + value), latent),
        f"{at}.self_attn.o_proj.weight": (H, heads * value),
    }
    if rank is None:
        shapes[f"{at}.self_attn.q_proj.weight"] = (heads * (nope + rope), H)
    else:
        shapes[f"{at}.self_attn.q_a_proj.weight"] = (rank, H)
        shapes[f"{at}.self_attn.q_a_layernorm.weight"] = (rank,)
        shapes[f"{at}.self_attn.q_b_proj.weight"] = (heads * (nope + rope), rank)
    if config["attention_bias"]:
        shapes[f"{at}.self_attn.kv_a_proj_with_mqa.bias"] = (latent + rope,)
        shapes[f"{at}.self_attn.o_proj.bias"] = (H,)
        if rank is not None:
            shapes[f"{at}.self_attn.q_a_proj.bias"] = (rank,)
    dense = config["first_k_dense_replace"] > LAYERS
    mlp = _swiglu(f"{at}.mlp", config["intermediate_size"]) if dense else _sparse(f"{at}.mlp", config)
    return {**_next_layer(index, config), **shapes, **mlp}


def _glm(index: int, config: dict[str, Any]) -> Shapes:
    at = f"model.layers.{LAYERS + index}"
    attention = _grouped(f"{at}.self_attn", config, bias=config["attention_bias"], norms=config["use_qk_norm"])
    return {**_next_layer(index, config), **attention, **_sparse(f"{at}.mlp", config)}


def _qwen(index: int, config: dict[str, Any]) -> Shapes:
    at = f"mtp.layers.{index}"
    shapes = {
        **_vectors(at, "input_layernorm", "post_attention_layernorm"),
        **_grouped(f"{at}.self_attn", config, bias=False, norms=True, gated=True),
    }
    if "num_experts" not in config:
        return {**shapes, **_swiglu(f"{at}.mlp", config["intermediate_size"])}
    return {
        **shapes,
        **_experts(
            f"{at}.mlp", config["num_experts"], config["moe_intermediate_size"], fused=config.get("fused", False)
        ),
        **_swiglu(f"{at}.mlp.shared_expert", config["shared_expert_intermediate_size"]),
        f"{at}.mlp.shared_expert_gate.weight": (1, H),
    }


def _qwen_shared() -> Shapes:
    norms = _vectors("mtp", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    return {**norms, "mtp.fc.weight": (H, 2 * H)}


SPARSE = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "n_shared_experts": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "rope_theta": 10000.0,
}
YARN = {
    "type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
}

DEEPSEEK = Checkpoint({**BASE, **LATENT, **SPARSE, "rope_scaling": YARN}, _deepseek)
GLM = Checkpoint(
    {**BASE, **SPARSE, "n_group": 1, "topk_group": 1, "head_dim": 12, "partial_rotary_factor": 0.5, "rope_theta": 1e6}
    | {"use_qk_norm": True, "attention_bias": True},
    _glm,
)
MIMO = Checkpoint({**BASE, "rope_theta": 640000.0, "attention_bias": True}, _mimo)
MIMO_V2 = Checkpoint(
    {
        **{key: value for key, value in BASE.items() if key != "rms_norm_eps"},
        "layernorm_epsilon": 1e-5,
        "head_dim": 12,
        "v_head_dim": 8,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 12,
        "swa_v_head_dim": 8,
        "rope_theta": 5e6,
        "swa_rope_theta": 10000.0,
        "partial_rotary_factor": 0.334,
        "sliding_window": 7,
        "attention_value_scale": 0.707,
        "add_swa_attention_sink_bias": False,
    },
    _mimo_v2,
)
QWEN = Checkpoint(
    {
        **BASE,
        "head_dim": 16,
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    _qwen,
    _qwen_shared,
    centre=0.0,
)


def varied(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    """The checkpoint with some values of its configuration changed; ``...`` takes one away."""
    config = {**checkpoint.config, **changes}
    return replace(checkpoint, config={key: value for key, value in config.items() if value is not ...})


FAMILIES: dict[str, Checkpoint] = {
    "mimo": MIMO,
    "mimo without bias": varied(MIMO, attention_bias=False),
    "mimo_v2": MIMO_V2,
    "deepseek": DEEPSEEK,
    "deepseek, queries in one step, dense": varied(
        DEEPSEEK,
        q_lora_rank=None,
        first_k_dense_replace=9,
        rope_interleave=False,
        attention_bias=True,
        rope_scaling=...,
    ),
    "glm": GLM,
    "glm, plain attention": varied(GLM, use_qk_norm=False, attention_bias=False, partial_rotary_factor=...),
    "qwen_next": QWEN,
    "qwen_next, experts in one tensor": varied(QWEN, fused=True, norm_topk_prob=False),
    "qwen3.5, dense": varied(QWEN, num_experts=...),
}


def random_tensors(checkpoint: Checkpoint, modules: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Float64 tensors by name: matrices that keep a vector's length, norms near their centre, small biases."""
    generator = torch.Generator().manual_seed(seed)
    shapes = checkpoint.shared()
    for index in range(modules):
        shapes = {**shapes, **checkpoint.shapes(index, checkpoint.config)}

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) == 1:
            return values * 0.3 if name.endswith("bias") else checkpoint.centre + values * 0.2
        return values / (1.0 if "embed" in name else shape[-1] ** 0.5)

    return {name: draw(name, shape) for name, shape in shapes.items()}


def target_tensors(seed: int = 99) -> tuple[Tensor, Tensor]:
    """The target's embedding and output weight [V, H]."""
    generator = torch.Generator().manual_seed(seed)
    table, rows = (torch.randn(V, H, generator=generator, dtype=torch.float64) for _ in range(2))
    return table, rows / H**0.5


def target_facts(folder: Path = Path(), dtype: torch.dtype = torch.float64, **changes: Any) -> TargetFacts:
    """What a head sees of the target."""
    table, rows = (tensor.to(dtype) for tensor in target_tensors())
    facts = TargetFacts(
        embed=lambda ids: F.embedding(ids, table),
        head=lambda states: F.linear(states, rows),
        config=SimpleNamespace(max_position_embeddings=256),
        folder=folder,
        hidden_size=H,
        num_layers=LAYERS,
        vocab_size=V,
        dtype=dtype,
        device="cpu",
    )
    return replace(facts, **changes)


def write_folder(folder: Path, checkpoint: Checkpoint, tensors: dict[str, Tensor], shards: int = 3) -> Path:
    """A target's folder: its own layers in shards with an index, the MTP tensors in the last two of them."""
    (folder / "config.json").write_text(json.dumps(checkpoint.config))
    target = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(4, H) for i in range(LAYERS)}
    parts: list[dict[str, Tensor]] = [target, *({} for _ in range(shards - 1))]
    for number, name in enumerate(sorted(tensors)):
        parts[1 + number % (shards - 1)][name] = tensors[name]
    names = {}
    for number, part in enumerate(parts):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file(part, folder / file)
        names |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def load_folder(folder: Path, target: TargetFacts) -> RecurrentHead:
    """What a caller does with a target's folder that may hold MTP modules."""
    path = str(folder)
    tensors = read_tensors(path, files(folder, target.num_layers), wanted(target.num_layers))
    config = json.loads((folder / "config.json").read_text())
    return build(Weights(path, dequantised(path, tensors), target.dtype, target.device), config, target)


def load(checkpoint: Checkpoint, tensors: dict[str, Tensor], target: TargetFacts | None = None) -> RecurrentHead:
    """The head straight from tensors."""
    target = target_facts() if target is None else target
    return build(Weights("checkpoint", tensors, target.dtype, target.device), dict(checkpoint.config), target)
