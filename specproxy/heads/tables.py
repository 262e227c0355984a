"""Both ends of a head: its embedding, its output product and the ids that its outputs stand for.

Each is either in the head's own file or the target's.

Shapes: T ids, N rows, D target width, H head width, V target vocabulary, Vd head vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.base import TargetFacts
from specproxy.heads.weights import Weights
from specproxy.models.linear import Linear

EMBEDDING, OUTPUT = "embed_tokens.weight", "lm_head.weight"
COMPARED_ROWS = 4096


@dataclass(frozen=True)
class Ends:
    """``embed``: ids [T] -> [T, H]. ``output``: features [N, H] -> scores [N, Vd]. ``ids`` [Vd]: see HeadSpec."""

    embed: Callable[[Tensor], Tensor]
    output: Linear
    ids: Tensor | None


def read_ends(weights: Weights, config: Mapping[str, Any], target: TargetFacts, width: int) -> Ends:
    """Embedding, output and vocabulary map of an EAGLE-3 head of width H. Raises ModelLoadError."""
    size = read_size(weights, config, target)
    table = read_embedding(weights, target, width)
    return Ends(
        embed=lookup(table, target),
        output=_read_output(weights, config, target, width, size, table),
        ids=read_ids(weights, size, target.vocab_size),
    )


def read_size(weights: Weights, config: Mapping[str, Any], target: TargetFacts) -> int:
    """Vd, after a check that the head was made for a vocabulary of the target's size."""
    check_vocabulary(weights.path, config, target)
    size = config.get("draft_vocab_size")
    if size is None:
        size = weights.shape(OUTPUT)[0] if OUTPUT in weights else target.vocab_size
    if size > target.vocab_size:
        raise ModelLoadError(
            f"{weights.path}: the head guesses among {size} tokens; the target has only {target.vocab_size}: it was "
            f"trained for another vocabulary; choose a head made for this target"
        )
    return int(size)


def check_vocabulary(path: str, config: Mapping[str, Any], target: TargetFacts) -> None:
    """Raises ModelLoadError where ``config`` names a vocabulary of another size than the target's."""
    vocab_size = config.get("vocab_size")
    if vocab_size is not None and vocab_size != target.vocab_size:
        raise ModelLoadError(
            f"{path}: config.json says vocab_size {vocab_size}; the target has {target.vocab_size}: the head was "
            f"trained for another vocabulary; choose a head made for this target"
        )


def check_width(path: str, width: int, target: TargetFacts) -> None:
    """Raises ModelLoadError where the head takes states of another ``width`` than the target's."""
    if width != target.hidden_size:
        raise ModelLoadError(
            f"{path}: the head takes hidden states {width} wide; the target's hidden_size is {target.hidden_size}: it "
            f"was trained for another target; choose a head made for this one"
        )


def read_embedding(weights: Weights, target: TargetFacts, width: int) -> Tensor | None:
    """The head's own table [V, H], ``None`` where the target's serves: there is none, or it is a copy of the target's
    (EAGLE-1/2 heads carry one, 1 GiB for an 8B target)."""
    if EMBEDDING not in weights:
        if width != target.hidden_size:
            raise ModelLoadError(
                f"{weights.path}: tensor {EMBEDDING} is missing; expected [{target.vocab_size}, {width}], as the "
                f"target's embedding is {target.hidden_size} wide and cannot stand in"
            )
        return None
    rows = weights.shape(EMBEDDING)[0]
    if rows != target.vocab_size:
        raise ModelLoadError(
            f"{weights.path}: {EMBEDDING} has {rows} rows; the target's vocabulary has {target.vocab_size} tokens: the "
            f"head was trained for another vocabulary; choose a head made for this target"
        )
    table = weights.take(EMBEDDING, target.vocab_size, width)
    ids = torch.arange(target.vocab_size, device=target.device)
    if width == target.hidden_size and all(
        torch.equal(table[part], target.embed(part)) for part in ids.split(COMPARED_ROWS)
    ):
        return None
    return table


def lookup(table: Tensor | None, target: TargetFacts) -> Callable[[Tensor], Tensor]:
    """The embedding over ``table``, or the target's."""
    if table is None:
        return target.embed
    return lambda ids: F.embedding(ids, table)


def _read_output(
    weights: Weights, config: Mapping[str, Any], target: TargetFacts, width: int, size: int, table: Tensor | None
) -> Linear:
    if OUTPUT in weights:
        return weights.linear(weights.take(OUTPUT, size, width))
    if size != target.vocab_size:
        raise ModelLoadError(
            f"{weights.path}: tensor {OUTPUT} is missing; expected [{size}, {width}], as the head has a vocabulary of "
            f"its own"
        )
    if config.get("tie_word_embeddings"):
        if table is not None:
            return weights.linear(table)
        if not getattr(target.config, "tie_word_embeddings", False):
            return weights.linear(target.embed(torch.arange(size, device=target.device)))
    if width != target.hidden_size:
        raise ModelLoadError(
            f"{weights.path}: tensor {OUTPUT} is missing; expected [{size}, {width}], as the target's output takes "
            f"states {target.hidden_size} wide"
        )
    return target.head


def read_ids(weights: Weights, size: int, vocab_size: int) -> Tensor | None:
    """The target's id of each of the head's [Vd], from the offsets in ``d2t``; ``None`` where they are the same.

    Raises ModelLoadError where an id is out of range or given twice, or where ``t2d``, the mask [V] of the target's
    tokens that the head knows, says something else.
    """
    path = weights.path
    if size == vocab_size and "d2t" not in weights:
        mask = _take_mask(weights, vocab_size)
        if mask is not None and not bool(mask.all()):
            raise ModelLoadError(f"{path}: t2d leaves target ids out and tensor d2t is missing; expected both")
        return None
    offsets = weights.take("d2t", size)
    if offsets.is_floating_point() or offsets.dtype == torch.bool:
        raise ModelLoadError(f"{path}: d2t holds {offsets.dtype}; expected integer offsets, target id = id + d2t[id]")
    own = torch.arange(size, device=offsets.device)
    ids = own + offsets.long()
    if size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ModelLoadError(
            f"{path}: d2t leads to target ids {int(ids.min())} to {int(ids.max())}; expected 0 to {vocab_size - 1}, "
            f"target id = id + d2t[id]; the head was made for another vocabulary, or d2t does not hold offsets"
        )
    if ids.unique().numel() != size:
        raise ModelLoadError(f"{path}: d2t leads two ids to one target id; expected each once; the file is damaged")
    mask = _take_mask(weights, vocab_size)
    if mask is not None and not torch.equal(mask.nonzero().flatten(), ids):
        raise ModelLoadError(
            f"{path}: d2t and t2d contradict each other; expected t2d to mark exactly the target ids id + d2t[id], in "
            f"ascending order; the file is damaged"
        )
    return None if size == vocab_size and torch.equal(ids, own) else ids


def _take_mask(weights: Weights, vocab_size: int) -> Tensor | None:
    mask = weights.maybe("t2d", vocab_size)
    return None if mask is None else mask.bool()
