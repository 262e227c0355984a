"""Medusa (Cai et al., arXiv 2401.10774): head i guesses token p + 2 + i from the target's final state of position p.

    x = x + silu(linear(x))          one residual block or several
    scores = output(x)               the head's own; the target's in the layout that shares it (TGI's second)

At one row dispatch is the cost, so the first blocks of all heads are one product, and so is a shared output.

Shapes: N rows, D width, V vocabulary, M heads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.base import HeadSpec, TargetFacts
from specproxy.heads.readings import NOWHERE, Origin
from specproxy.heads.tables import check_vocabulary
from specproxy.heads.weights import Weights
from specproxy.models.base import FINAL
from specproxy.models.linear import Linear

PREFIX = "medusa_head."
NAME = re.compile(r"(?:medusa_head\.)?(\d+)\.(\d+)\.(?:linear\.)?(?:weight|bias)")


def is_medusa(name: str) -> bool:
    """Whether a tensor's name is one of a Medusa head's, in a file of its own or (Medusa-2) in a whole checkpoint."""
    return NAME.fullmatch(name) is not None


class MedusaHead:
    """ParallelHead over all of ``weights``."""

    def __init__(
        self, weights: Weights, config: Mapping[str, Any], target: TargetFacts, origin: Origin = NOWHERE
    ) -> None:
        """Takes every tensor it has a place for. Heads are counted from the names: the published configurations are
        wrong about them. Raises ModelLoadError."""
        prefix = PREFIX if any(name.startswith(PREFIX) for name in weights.names) else ""
        heads, blocks = _count(weights)
        check_vocabulary(weights.path, config, target)
        width = weights.shape(f"{prefix}0.0.linear.weight")[-1]
        if width != target.hidden_size:
            raise ModelLoadError(
                f"{weights.path}: {prefix}0.0.linear.weight takes states {width} wide; the target's hidden_size is "
                f"{target.hidden_size}: the heads were trained for another target; choose heads made for this one"
            )
        self._count, self._width = heads, width
        self._first, self._later = _read_blocks(weights, prefix, heads, blocks, width)
        shared = not any(f"{prefix}{i}.{blocks}.weight" in weights for i in range(heads))
        self._shared = target.head if shared else None
        self._outputs = [] if shared else _read_outputs(weights, prefix, heads, blocks, target)
        said = config.get("medusa_num_heads")
        count = f"{heads} heads" + (f", where config.json says {said}" if said not in (None, heads) else "")
        self.spec = HeadSpec(
            kind="medusa",
            hidden=(FINAL,),
            layers=(),
            steps=heads,
            window=None,
            ids=None,
            fingerprint=weights.fingerprint("medusa"),
            reading="; ".join([count, *origin.notes]),
            verifier=origin.verifier,
        )

    def logits(self, hidden: Tensor) -> Sequence[Tensor]:
        """See ParallelHead.logits."""
        rows = hidden.shape[0]
        states = hidden[:, None] + F.silu(self._first(hidden)).view(rows, self._count, self._width)
        if self._shared is not None and not self._later:
            return self._shared(states.view(-1, self._width)).view(rows, self._count, -1).unbind(1)
        parts = list(states.unbind(1))
        for block in self._later:
            parts = [x + F.silu(linear(x)) for linear, x in zip(block, parts, strict=True)]
        if self._shared is not None:
            return self._shared(torch.cat(parts)).chunk(self._count)
        return [output(x) for output, x in zip(self._outputs, parts, strict=True)]


def _count(weights: Weights) -> tuple[int, int]:
    """Heads, and residual blocks of each. Raises ModelLoadError where their numbers have gaps or differ."""
    found: dict[int, set[int]] = {}
    for name in weights.names:
        match = NAME.fullmatch(name)
        if match and ".linear." in name:
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    blocks = max((len(each) for each in found.values()), default=0)
    if not found or sorted(found) != list(range(len(found))):
        raise ModelLoadError(f"{weights.path}: heads {sorted(found)} have residual blocks; expected 0, 1, 2, ... ")
    for head, each in found.items():
        if each != set(range(blocks)):
            raise ModelLoadError(
                f"{weights.path}: head {head} has residual blocks {sorted(each)}; expected 0 to {blocks - 1}, as the "
                f"other heads have"
            )
    return len(found), blocks


def _read_blocks(
    weights: Weights, prefix: str, heads: int, blocks: int, width: int
) -> tuple[Linear, list[list[Linear]]]:
    """The first blocks of all heads, [N, D] -> [N, M * D], and those behind, a list of M products each."""

    def block(head: int, index: int) -> tuple[Tensor, Tensor]:
        name = f"{prefix}{head}.{index}.linear"
        return weights.take(f"{name}.weight", width, width), weights.take(f"{name}.bias", width)

    first = [block(head, 0) for head in range(heads)]
    merged = weights.linear(torch.cat([w for w, _ in first]), torch.cat([b for _, b in first]))
    return merged, [[weights.linear(*block(head, index)) for head in range(heads)] for index in range(1, blocks)]


def _read_outputs(
    weights: Weights, prefix: str, heads: int, blocks: int, target: TargetFacts
) -> list[Callable[[Tensor], Tensor]]:
    names = [f"{prefix}{head}.{blocks}.weight" for head in range(heads)]
    rows = weights.shape(names[0])[0]
    if rows != target.vocab_size:
        raise ModelLoadError(
            f"{weights.path}: {names[0]} has {rows} rows; the target's vocabulary has {target.vocab_size} tokens: the "
            f"heads were trained for another vocabulary; choose heads made for this target"
        )
    return [weights.linear(weights.take(name, rows, target.hidden_size)) for name in names]
