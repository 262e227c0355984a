"""Heads as they are published: names and shapes of every layout, random weights, and a target that is only two tables.

head = speculators_eagle3(Sizes(), seed=1)
folder = head.write(tmp_path)
target = fake_target(Sizes())
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from specproxy.heads.base import TargetFacts

ARCHITECTURE = "LlamaForCausalLM"


@dataclass(frozen=True)
class Sizes:
    """Of a target (``layers``, ``vocab``, ``target_hidden``) and a head. ``head_dim`` is not hidden / heads."""

    hidden: int = 24
    target_hidden: int = 24
    intermediate: int = 40
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    vocab: int = 96
    draft_vocab: int = 40
    layers: int = 12
    count: int = 3
    eps: float = 1e-5


@dataclass
class Checkpoint:
    """Tensors and configuration of a head."""

    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    file: str = "model.safetensors"

    def write(self, folder: Path) -> Path:
        """Write config.json and the weights, in the file kind of their name; the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        if self.file.endswith(".safetensors"):
            save_file(tensors, folder / self.file)
        else:
            torch.save(tensors, folder / self.file)
        return folder

    def without(self, *names: str) -> Checkpoint:
        """The checkpoint, some tensors of which are missing."""
        return replace(self, tensors={n: t for n, t in self.tensors.items() if n not in names})

    def plus(self, **tensors: Tensor) -> Checkpoint:
        """The checkpoint with other or more tensors; ``__`` in a name stands for a dot."""
        return replace(self, tensors=self.tensors | {n.replace("__", "."): t for n, t in tensors.items()})

    def saying(self, **config: Any) -> Checkpoint:
        """The checkpoint with other configuration values; ``None`` removes a key."""
        merged = {**self.config, **config}
        return replace(self, config={key: value for key, value in merged.items() if value is not None})


class Draw:
    """Random weights, of a size that keeps activations near 1."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, rows: int, width: int) -> Tensor:
        """A projection [rows, width]."""
        return self.normal(rows, width) / width**0.5

    def normal(self, *shape: int) -> Tensor:
        """Independent standard normals, float64."""
        return torch.randn(*shape, dtype=torch.float64, generator=self._generator)

    def norm(self, width: int) -> Tensor:
        """A norm's weight."""
        return 1 + 0.2 * self.normal(width)

    def kept(self, vocab: int, size: int) -> Tensor:
        """Some target ids, ascending."""
        return torch.randperm(vocab, generator=self._generator)[:size].sort().values


@dataclass(frozen=True)
class FakeTarget:
    """A target that is an embedding [V, D] and an output [V, D]; both are random."""

    facts: TargetFacts
    embedding: Tensor
    output: Tensor


def fake_target(sizes: Sizes, dtype: torch.dtype = torch.float64, **config: Any) -> FakeTarget:
    """A target of these sizes; ``config``: more of its configuration."""
    draw = Draw(7)
    embedding = draw.normal(sizes.vocab, sizes.target_hidden).to(dtype)
    output = draw.matrix(sizes.vocab, sizes.target_hidden).to(dtype)
    said = {"architectures": [ARCHITECTURE], "max_position_embeddings": 512, "tie_word_embeddings": False}
    facts = TargetFacts(
        embed=lambda ids: F.embedding(ids, embedding),
        head=lambda states: F.linear(states, output),
        config=SimpleNamespace(name_or_path="org/tiny-target", **said | config),
        folder=Path("/models/tiny-target"),
        hidden_size=sizes.target_hidden,
        num_layers=sizes.layers,
        vocab_size=sizes.vocab,
        dtype=dtype,
        device="cpu",
    )
    return FakeTarget(facts, embedding, output)


def llama_tensors(draw: Draw, sizes: Sizes, prefix: str, width: int) -> Iterator[tuple[str, Tensor]]:
    """Attention over inputs ``width`` wide, MLP and the norm before it."""
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    for name, rows in (("q", queries), ("k", keys), ("v", keys)):
        yield f"{prefix}self_attn.{name}_proj.weight", draw.matrix(rows, width)
    yield f"{prefix}self_attn.o_proj.weight", draw.matrix(sizes.hidden, queries)
    yield f"{prefix}mlp.gate_proj.weight", draw.matrix(sizes.intermediate, sizes.hidden)
    yield f"{prefix}mlp.up_proj.weight", draw.matrix(sizes.intermediate, sizes.hidden)
    yield f"{prefix}mlp.down_proj.weight", draw.matrix(sizes.hidden, sizes.intermediate)
    yield f"{prefix}post_attention_layernorm.weight", draw.norm(sizes.hidden)


def llama_config(sizes: Sizes) -> dict[str, Any]:
    """Dimensions as every layout names them."""
    return {
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": sizes.eps,
        "num_hidden_layers": 1,
        "vocab_size": sizes.vocab,
        "max_position_embeddings": 256,
    }


def _eagle3_tensors(draw: Draw, sizes: Sizes, prefix: str) -> dict[str, Tensor]:
    kept = draw.kept(sizes.vocab, sizes.draft_vocab)
    mask = torch.zeros(sizes.vocab, dtype=torch.bool)
    mask[kept] = True
    return {
        "fc.weight": draw.matrix(sizes.hidden, sizes.count * sizes.target_hidden),
        **dict(llama_tensors(draw, sizes, prefix, 2 * sizes.hidden)),
        f"{prefix}input_layernorm.weight": draw.norm(sizes.hidden),
        f"{prefix}hidden_norm.weight": draw.norm(sizes.hidden),
        "norm.weight": draw.norm(sizes.hidden),
        "lm_head.weight": draw.matrix(sizes.draft_vocab, sizes.hidden),
        "d2t": kept - torch.arange(sizes.draft_vocab),
        "t2d": mask,
    }


def original_eagle3(sizes: Sizes, seed: int = 0) -> Checkpoint:
    """The EAGLE repository's: no layer ids, no RoPE base, dimensions at the top; head_dim is what divides."""
    sizes = replace(sizes, head_dim=sizes.hidden // sizes.heads)
    config = llama_config(sizes)
    del config["head_dim"]
    config |= {"architectures": [ARCHITECTURE], "draft_vocab_size": sizes.draft_vocab}
    return Checkpoint(_eagle3_tensors(Draw(seed), sizes, "midlayer."), config, "pytorch_model.bin")


def specforge_eagle3(sizes: Sizes, seed: int = 0, ids: tuple[int, ...] = (1, 5, 8)) -> Checkpoint:
    """SpecForge's: explicit head_dim, nested layer ids, no embedding. ``ids``: layers whose output is meant."""
    config = llama_config(sizes) | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": sizes.draft_vocab,
        "rope_theta": 500000.0,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(ids), "use_aux_hidden_state": True},
    }
    return Checkpoint(_eagle3_tensors(Draw(seed), sizes, "midlayer."), config)


def speculators_eagle3(sizes: Sizes, seed: int = 0, ids: tuple[int, ...] = (2, 6, 9)) -> Checkpoint:
    """speculators': nested dimensions, ``layers.0``, own embedding, a verifier. ``ids``: as hs indices."""
    draw = Draw(seed)
    tensors = _eagle3_tensors(draw, sizes, "layers.0.")
    tensors["embed_tokens.weight"] = draw.normal(sizes.vocab, sizes.hidden)
    config = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "draft_vocab_size": sizes.draft_vocab,
        "norm_before_residual": False,
        "eagle_aux_hidden_state_layer_ids": list(ids),
        "target_hidden_size": sizes.target_hidden if sizes.target_hidden != sizes.hidden else None,
        "transformer_layer_config": llama_config(sizes) | {"model_type": "llama", "rope_theta": 20000.0},
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": "org/tiny-target", "architectures": [ARCHITECTURE]},
        },
    }
    return Checkpoint(tensors, config)


def eagle1(sizes: Sizes, seed: int = 0, layers: int = 1, *, bias: bool = True) -> Checkpoint:
    """EAGLE-1 and EAGLE-2: embedding in the file, no norm before the first attention, no output."""
    draw = Draw(seed)
    tensors = {"embed_tokens.weight": draw.normal(sizes.vocab, sizes.hidden)}
    tensors["fc.weight"] = draw.matrix(sizes.hidden, 2 * sizes.hidden)
    if bias:
        tensors["fc.bias"] = draw.normal(sizes.hidden)
    for layer in range(layers):
        tensors |= dict(llama_tensors(draw, sizes, f"layers.{layer}.", sizes.hidden))
        if layer:
            tensors[f"layers.{layer}.input_layernorm.weight"] = draw.norm(sizes.hidden)
    config = llama_config(sizes) | {"architectures": [ARCHITECTURE], "num_hidden_layers": layers}
    return Checkpoint(tensors, config if bias else config | {"bias": False}, "pytorch_model.bin")


def medusa(sizes: Sizes, seed: int = 0, heads: int = 3, blocks: int = 1, *, shared: bool = False) -> Checkpoint:
    """Medusa; ``shared``: the layout without outputs. The configuration is wrong about the heads, as published."""
    draw, width = Draw(seed), sizes.target_hidden
    tensors: dict[str, Tensor] = {}
    for head in range(heads):
        for block in range(blocks):
            tensors[f"{head}.{block}.linear.weight"] = draw.matrix(width, width)
            tensors[f"{head}.{block}.linear.bias"] = draw.normal(width)
        if not shared:
            tensors[f"{head}.{blocks}.weight"] = draw.matrix(sizes.vocab, width)
    config = {"medusa_num_heads": 2, "medusa_num_layers": blocks, "base_model_name_or_path": "org/tiny-target"}
    return Checkpoint(tensors, config, "medusa_lm_head.safetensors")


def medusa2(sizes: Sizes, seed: int = 0, heads: int = 3) -> Checkpoint:
    """Medusa-2: the heads inside a whole checkpoint."""
    inner = medusa(sizes, seed, heads)
    tensors = {f"medusa_head.{name}": tensor for name, tensor in inner.tensors.items()}
    draw = Draw(seed + 1)
    tensors["lm_head.weight"] = draw.matrix(sizes.vocab, sizes.target_hidden)
    tensors["model.layers.0.mlp.up_proj.weight"] = draw.matrix(sizes.intermediate, sizes.target_hidden)
    return Checkpoint(tensors, llama_config(sizes) | {"architectures": [ARCHITECTURE]})
