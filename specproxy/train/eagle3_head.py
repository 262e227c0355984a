"""The trainable part of an EAGLE-3 head: its parameters, vocabulary and configuration as they are published.

The format is that of the EAGLE repository and of SpecForge: ``fc``, ``midlayer``, ``norm``, ``lm_head``, ``d2t``,
``t2d``; the embedding is the target's and is not written.

Shapes: B rows, T tokens, S starts, D target width, H width, C captured states, V vocabulary, Vd the head's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from specproxy.train.block import Block, BlockShape, Norm
from specproxy.train.packing import Batch, Document, pick, shift


@dataclass(frozen=True)
class Eagle3Options:
    """``hidden``: captured states hs[i], ``None`` for the published 2, L // 2, L - 3. ``steps``: of training-time test.
    Sizes that are ``None`` are the target's. ``window``: longest documents it is trained on."""

    draft_vocab: int = 2048
    hidden: tuple[int, ...] | None = None
    steps: int = 7
    intermediate_size: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    window: int = 1024


class Eagle3Head(nn.Module):
    """The trainable part, its parameters and buffers under their published names."""

    d2t: Tensor
    t2d: Tensor

    def __init__(self, shape: BlockShape, fused_size: int, kept: Tensor, vocab_size: int) -> None:
        """``fused_size``: C * D. ``kept`` [Vd]: the target's ids of the draft vocabulary, ascending."""
        super().__init__()
        self.fc = nn.Linear(fused_size, shape.hidden_size, bias=False)
        self.midlayer = Block(shape)
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.lm_head = nn.Linear(shape.hidden_size, len(kept), bias=False)
        self.register_buffer("d2t", kept - torch.arange(len(kept)))
        self.register_buffer("t2d", torch.zeros(vocab_size, dtype=torch.bool).index_fill_(0, kept, True))

    @property
    def kept(self) -> Tensor:
        """The target's id [Vd] of each id of its own."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def unroll(self, taps: Tensor, embedded: Tensor, batch: Batch, steps: int) -> Iterator[Tensor]:
        """Features [B, S, H] of each step from the batch's starts, normed for ``lm_head``. taps [B, T, C * D], embedded
        [B, T, H] of the ids.

        Step j pairs its state with token t + 1 + j, at position t + j.
        """
        hidden, memory = self.midlayer.first(shift(embedded, 1), self.fc(taps), batch)
        yield self.norm(hidden)
        positions = pick(batch.positions, batch.starts)
        for step in range(1, steps):
            token = pick(embedded, batch.starts + 1 + step)
            hidden = self.midlayer.next(token, hidden, positions + step, memory)
            yield self.norm(hidden)


def count_tokens(documents: Sequence[Document], vocab_size: int) -> Tensor:
    """How often each id [V] stands where a guess counts."""
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for document in documents:
        tokens = torch.tensor(document.ids[document.start :], dtype=torch.int64)
        counts.index_add_(0, tokens, torch.ones_like(tokens))
    return counts


def draft_vocabulary(counts: Tensor, size: int, always: Sequence[int] = ()) -> Tensor:
    """The ``size`` most frequent ids [Vd], ascending; ``always`` are among them. Ties go to the lower id."""
    ranks = counts.clone()
    ranks[list(always)] = counts.max() + 1
    return ranks.argsort(descending=True, stable=True)[:size].sort().values


def published_config(head: Eagle3Head, hidden: tuple[int, ...], vocab_size: int, window: int) -> dict[str, Any]:
    """``config.json``. The states stand at the top level, where a value v means hs[v] to everybody who reads it; nested
    ones are counted from one layer further down by some."""
    shape = head.midlayer.shape
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "max_position_embeddings": window,
        "vocab_size": vocab_size,
        "draft_vocab_size": len(head.d2t),
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eagle_aux_hidden_state_layer_ids": list(hidden),
        "num_aux_hidden_states": len(hidden),
    }


def read_shape(config: dict[str, Any]) -> BlockShape:
    """The layer's sizes, from a configuration as ``published_config`` makes it."""
    return BlockShape(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        rope_theta=config["rope_theta"],
        rms_norm_eps=config["rms_norm_eps"],
    )


def default_states(layers: int) -> tuple[int, ...]:
    """hs[2], hs[L // 2], hs[L - 3]: what everybody takes where a configuration says nothing."""
    return (2, layers // 2, layers - 3)


def block_shape(config: Any, options: Eagle3Options) -> BlockShape:
    """Sizes of the layer: the target's, where ``options`` says nothing."""
    heads = options.heads or config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    return BlockShape(
        hidden_size=config.hidden_size,
        intermediate_size=options.intermediate_size or config.intermediate_size,
        heads=heads,
        kv_heads=options.kv_heads or getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        rms_norm_eps=float(getattr(config, "rms_norm_eps", 1e-6)),
    )
