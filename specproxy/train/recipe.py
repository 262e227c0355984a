"""What a training loop needs from the thing it trains, and how acceptance is counted.

Guess j at position t is about token t + 2 + j: the target's state of t gives token t + 1 itself. It counts as accepted
where it and all guesses before it from the same t are the target's token; its conditional acceptance is the share of
accepted guesses among those whose predecessors were accepted.

Shapes: B rows, T positions or starts, K guesses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from specproxy.train.packing import Batch


class Guesses(NamedTuple):
    """``right`` and ``counted`` [K, B, T] bool: the guess is the target's token; there is something to guess."""

    right: Tensor
    counted: Tensor


class Outcome(NamedTuple):
    """``loss``: to be minimised. ``guesses``: against the target's most likely token."""

    loss: Tensor
    guesses: Guesses


def mixed_precision(device: str) -> torch.autocast:
    """bf16 products over float32 weights on a GPU; plain float32 on a CPU, where bf16 is slower and coarser."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu")


class Recipe(Protocol):
    """A module and how it is taught. ``name``: eagle3, medusa, draft. ``steps``: K."""

    name: str
    steps: int

    @property
    def module(self) -> nn.Module:
        """What is trained: parameters in float32."""
        ...

    def learn(self, batch: Batch) -> Outcome:
        """One batch's loss, with gradients."""
        ...

    def guess(self, batch: Batch) -> Guesses:
        """Guesses against the tokens that stand in the batch, as a server would make them, without gradients."""
        ...

    def step_s(self, repeat: Callable[[Callable[[], object]], float]) -> float:
        """Seconds that one round of ``steps`` guesses takes, divided by ``steps``. ``repeat`` times a call."""
        ...

    def save(self, folder: Path) -> None:
        """Write the published format: configuration and weights."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the card says about its shape."""
        ...


@dataclass
class Tally:
    """Counts of guesses: ``tried`` [K] float64, those whose predecessors were all right, and ``right`` [K] of them;
    ``starts``: positions from which a first guess was made."""

    tried: Tensor
    right: Tensor
    starts: float = 0.0

    @classmethod
    def of(cls, guesses: Guesses) -> Tally:
        """Counts of one batch. Whatever is not counted ends its chain without a verdict."""
        alive = torch.ones_like(guesses.right[0])
        tried, right = [], []
        for good, counted in zip(guesses.right, guesses.counted, strict=True):
            alive = alive & counted
            tried.append(alive.sum())
            alive = alive & good
            right.append(alive.sum())
        counts = torch.stack([torch.stack(tried), torch.stack(right)]).double().cpu()
        return cls(counts[0], counts[1], float(counts[0, 0]))

    def add(self, other: Tally) -> None:
        """Count both."""
        self.tried += other.tried
        self.right += other.right
        self.starts += other.starts

    @property
    def conditional(self) -> list[float]:
        """Acceptance of guess j where all before it were accepted."""
        rates: list[float] = (self.right / self.tried.clamp_min(1)).tolist()
        return rates

    @property
    def chain(self) -> list[float]:
        """Probability that guesses 1 to j are all accepted."""
        rates: list[float] = (self.right / self.tried.clamp_min(1)).cumprod(0).tolist()
        return rates

    def expected_tokens(self, guesses: int) -> float:
        """Tokens of a round that drafts ``guesses``: the accepted ones and the target's own."""
        return 1.0 + sum(self.chain[:guesses])
