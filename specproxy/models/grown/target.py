"""A stock Llama in a large one's shape, in memory only.

Layers that the small model lacks add nothing to the residual stream; the others stand among them as ``layer_map`` says.
Only ids below the small model's vocabulary mean anything: the rows behind have logits of no meaning, and whoever reads
logits cuts them there (``Grown.real_vocab``, ``RealIds``).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specproxy.errors import ModelLoadError
from specproxy.models.grown.placing import Fill, Filler, Placement, place, read_sizes
from specproxy.models.grown.shapes import Shape, find_shape, layer_map
from specproxy.models.sharding import Group, check_shares, keep_share

MERGED = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj")))
"""Projections of one input. They are row views of one tensor: a layer loop that merges them frees a block of the size
that it needs for the next layer's, and no memory is lost between blocks."""

ALONE = ("self_attn.o_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")

Put = Callable[[str, Tensor], Tensor]
"""Places what belongs to a layer's module of that name in a tensor of free weights; the tensor again."""


@dataclass(frozen=True)
class Grown:
    """``model``: a transformers LlamaForCausalLM. ``real_vocab``: ids from there on are padding. ``layers``: see
    ``layer_map``. ``fingerprint``: of the small model's files, the shape and the fill."""

    model: Any
    real_vocab: int
    layers: tuple[int, ...]
    fingerprint: str


class RealIds:
    """A logits processor for transformers' ``generate``: ids from ``real_vocab`` on are never chosen."""

    def __init__(self, real_vocab: int) -> None:
        self._real_vocab = real_vocab

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [N, V] with -inf for padding."""
        padding = torch.arange(scores.shape[-1], device=scores.device) >= self._real_vocab
        return scores.masked_fill(padding, float("-inf"))


def grown_stock(stock: Any, folder: Path, shape_name: str, fill: Fill = "random", group: Group | None = None) -> Grown:
    """The small ``stock`` of ``folder`` in the shape of that name, on its device and in its type; see ``grow_target``.

    Raises ModelLoadError.
    """
    from specproxy.models.loading import fingerprint, tokenizer_size

    shape = find_shape(shape_name)
    try:
        model = grow_target(stock, shape, stock.device, stock.dtype, fill, group)
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(f"{folder.name} as {shape_name} does not fit {stock.device}: {error}") from None
    return Grown(
        model=model,
        real_vocab=min(tokenizer_size(folder), stock.config.vocab_size),
        layers=layer_map(stock.config.num_hidden_layers, shape.layers),
        fingerprint=hashlib.sha256(f"{fingerprint(folder)}:{shape}:{fill}".encode()).hexdigest()[:16],
    )


@torch.no_grad()
def grow_target(
    stock: Any,
    shape: Shape,
    device: str | torch.device,
    dtype: torch.dtype,
    fill: Fill = "random",
    group: Group | None = None,
) -> Any:
    """A LlamaForCausalLM of ``shape`` that computes what the LlamaForCausalLM ``stock`` does, target or draft model.

    It is made layer by layer on ``device``; beside the result there is never more than one weight of the small model.
    ``fill``: what stands in weights that meet zeros alone; the same bits for the same shape, device and type.
    ``group``: of the processes that share it each keeps its part of a layer before the next is made. Raises
    ModelLoadError where ``stock`` cannot be grown.
    """
    where = str(stock.config.name_or_path or "model")
    if stock.config.model_type != "llama":
        raise ModelLoadError(f"{where}: model type {stock.config.model_type} cannot be grown; expected llama")
    if shape.tied and not stock.config.tie_word_embeddings:
        raise ModelLoadError(f"{where} has an output matrix of its own; it cannot be grown into a shape that ties it")
    placement = Placement(read_sizes(stock.config.to_dict(), where), shape, where)
    layers = layer_map(stock.config.num_hidden_layers, shape.layers)
    filler = Filler(fill, device, dtype)
    model = _empty(stock, shape, placement.eps, device, dtype)
    if group is not None:
        check_shares(model.config, group.size, where)
    _grow_ends(stock, model, shape, placement, filler)
    standing = {after - 1: layer for after, layer in zip(layers[1:], stock.model.layers, strict=True)}
    for index, layer in enumerate(model.model.layers):
        _fill_layer(layer, shape, filler, _putter(standing.get(index), placement))
        if group is not None:
            keep_share(layer, group)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def random_target(stock: Any, shape: Shape, device: str | torch.device, dtype: torch.dtype) -> Any:
    """A LlamaForCausalLM of ``shape`` with random weights throughout, configured as ``stock``: what grown weights are
    compared with when power and time are measured."""
    filler = Filler("random", device, dtype)
    model = _empty(stock, shape, stock.config.rms_norm_eps, device, dtype)
    model.model.embed_tokens.weight = _parameter(filler.make(shape.vocab, shape.hidden))
    model.model.norm.weight = _parameter(filler.make(shape.hidden).fill_(1))
    for layer in model.model.layers:
        _fill_layer(layer, shape, filler, lambda name, out: out.fill_(1) if name in NORMS else out)
    output = model.model.embed_tokens.weight if shape.tied else _parameter(filler.make(shape.vocab, shape.hidden))
    model.lm_head.weight = output
    return model.eval().requires_grad_(False)


def grown_config(config: Mapping[str, Any], shape: Shape, eps: float) -> dict[str, Any]:
    """``config`` of the small model with the sizes of ``shape``."""
    return {
        **config,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "rms_norm_eps": eps,
    }


def _empty(stock: Any, shape: Shape, eps: float, device: str | torch.device, dtype: torch.dtype) -> Any:
    """The model without weights, its rotary frequencies on ``device``."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(**grown_config(stock.config.to_dict(), shape, eps))
    config.name_or_path = stock.config.name_or_path
    config.dtype = dtype
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    model.generation_config = copy.deepcopy(stock.generation_config)
    return model


def _grow_ends(stock: Any, model: Any, shape: Shape, placement: Placement, filler: Filler) -> None:
    """Embedding, last norm and output product."""
    table = stock.model.embed_tokens.weight
    count, width = table.shape
    grown = filler.make(shape.vocab, shape.hidden)
    grown[:, width:] = 0
    grown[:count, :width] = table
    model.model.embed_tokens.weight = _parameter(grown)
    model.model.norm.weight = _parameter(placement.norm(stock.model.norm.weight, filler.make(shape.hidden)))
    if shape.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
        return
    output, made = stock.lm_head.weight, filler.make(shape.vocab, shape.hidden)
    model.lm_head.weight = _parameter(place(made, output, torch.arange(count), placement.blocks(1)))


def _fill_layer(layer: Any, shape: Shape, filler: Filler, put: Put) -> None:
    """Give a decoder layer weights of ``shape``, made by ``filler`` and completed by ``put``."""
    for part, names in MERGED:
        rows = [shape.matrix(name)[0] for name in names]
        merged = filler.make(sum(rows), shape.hidden)
        for name, out in zip(names, merged.split(rows), strict=True):
            layer.get_submodule(f"{part}.{name}").weight = _parameter(put(f"{part}.{name}", out))
    for path in ALONE:
        out = filler.make(*shape.matrix(path.partition(".")[2]))
        layer.get_submodule(path).weight = _parameter(put(path, out))
    for path in NORMS:
        layer.get_submodule(path).weight = _parameter(put(path, filler.make(shape.hidden)))


def _putter(small: Any, placement: Placement) -> Put:
    """Places what the ``small`` layer has; ``None``: what makes a layer add nothing."""

    def put(path: str, out: Tensor) -> Tensor:
        weight = None if small is None else small.get_submodule(path).weight
        if path not in NORMS:
            return placement.matrix(path.partition(".")[2], weight, out)
        return out if weight is None else placement.norm(weight, out)

    return put


def _parameter(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)
