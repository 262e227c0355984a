"""What a head is, once its published format is read: one description, two kinds of forward.

A *recurrent* head (EAGLE-1/2/3, MTP) pairs the target's hidden state of position t with token t + 1 and guesses token
t + 2; fed its own state and its own guess, it goes on. A *parallel* head (Medusa) guesses tokens t + 2, t + 3, ... from
the hidden state of position t alone.

Hidden states are named as in the papers: hs[i] is the residual stream after i decoder layers, not normed, 1 <= i < L;
FINAL is the state behind the target's final norm.

Shapes: T entries of a step, N rows that guess, D width of the target, H width of the head, C captured states, V
vocabulary of the target, Vd of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from specproxy.kernels.attention import Attention
from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.models.library import Library

Kind = Literal["eagle", "eagle3", "medusa", "mtp"]


@dataclass(frozen=True)
class TargetFacts:
    """What a head shares with its target.

    ``embed``: ids [T] -> [T, D]. ``head``: states behind the final norm [N, D] -> logits [N, V]. ``config``: the
    target's transformers configuration (its text part). ``folder``: where its files are. ``dtype``, ``device``: of the
    head's weights too. ``grown``: the shape that it was grown into (``models/grown``), if it was. ``code``: what runs
    the target, where it is compiled; the head's blocks are then too.
    """

    embed: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    config: Any
    folder: Path
    hidden_size: int
    num_layers: int
    vocab_size: int
    dtype: torch.dtype
    device: str
    grown: str = ""
    code: Library | None = None


@dataclass(frozen=True)
class OwnText:
    """A text the target wrote. ``tokens``: prompt and greedy output; ``start``: where the output begins; ``states``
    [T, D]: hidden states of all positions, by name (see StepModel.forward)."""

    tokens: list[int]
    start: int
    states: Mapping[int, Tensor]


@dataclass(frozen=True)
class HeadSpec:
    """Facts about a loaded head.

    ``hidden``: states it reads, in the order of the concatenation. ``layers``: KV that it keeps, a shape a layer.
    ``steps``: tokens it can draft one behind the other, ``None`` for any number. ``window``: positions it was trained
    for, ``None`` for the target's. ``ids`` [Vd] int64: the target's id of each of its own, ``None`` where they are the
    same. ``reading``: how an ambiguous checkpoint was understood, for people. ``verifier``: the target it was trained
    for, as its configuration names it. ``group``: query heads that share a key head. ``capturable``: a step asks the
    device for nothing, so that a CUDA graph can hold it.
    """

    kind: Kind
    hidden: tuple[int, ...]
    layers: tuple[LayerShape, ...]
    steps: int | None
    window: int | None
    ids: Tensor | None
    fingerprint: str
    reading: str = ""
    verifier: str | None = None
    group: int = 1
    capturable: bool = True


class HeadStep(NamedTuple):
    """``recurrent`` [T, H]: the state that the next step takes in place of the target's. ``features`` [T, H]: what the
    head's output product takes."""

    recurrent: Tensor
    features: Tensor


class RecurrentHead(Protocol):
    """EAGLE-1/2/3, MTP."""

    spec: HeadSpec

    def fuse(self, taps: Tensor) -> Tensor:
        """The target's states [T, C * D], concatenated in the order of ``spec.hidden``, as ``step`` takes them:
        [T, H]."""
        ...

    def step(
        self, ids: Tensor, hidden: Tensor, positions: Tensor, plan: Attention, kv: KVBuffers, module: int = 0
    ) -> HeadStep:
        """Entries of (hidden [T, H] of position p, token ids [T] of position p + 1), ``positions`` [T] holding p.

        KV goes to ``plan.slots``. ``module``: which of several MTP modules runs (it owns its part of ``spec.layers``).
        """
        ...

    def logits(self, features: Tensor, module: int = 0) -> Tensor:
        """Scores [N, Vd] of the token after the next, from ``HeadStep.features`` [N, H]."""
        ...


class ParallelHead(Protocol):
    """Medusa."""

    spec: HeadSpec

    def logits(self, hidden: Tensor) -> Sequence[Tensor]:
        """For each of ``spec.steps`` heads the scores [N, V] of token p + 2 + i, from states [N, D] of position p."""
        ...


Head = RecurrentHead | ParallelHead
