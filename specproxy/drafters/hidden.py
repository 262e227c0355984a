"""The target's hidden states of one sequence, kept until its drafter takes them in.

A drafter that is not asked for a while does not work: states of committed tokens wait here, bounded, and are taken in
at once when a draft is wanted, or when there is no more room. Where positions were not captured (the route was off) the
states begin anew behind the gap.

Shapes: T positions, W width of the captured states, concatenated.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_WAITING = 512
"""Positions that may wait. At the width of EAGLE-3 for an 8B target in bf16 that is 12 MiB a sequence."""


class HiddenRows:
    """States of positions ``start`` to ``end`` (exclusive)."""

    def __init__(self) -> None:
        self.start = 0
        self.end = 0
        self._parts: list[Tensor] = []

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, position: int, states: Tensor) -> None:
        """States [T, W] of the positions from ``position`` on. Behind a gap they are the first ones."""
        if position != self.end or not self._parts:
            self._parts.clear()
            self.start = position
        self._parts.append(states)
        self.end = position + states.shape[0]

    def take(self, end: int) -> Tensor:
        """States [T, W] up to position ``end`` (exclusive), which are then gone from here."""
        states = self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts)
        taken = states[: end - self.start]
        rest = states[end - self.start :]
        self._parts = [rest] if rest.shape[0] else []
        self.start = end
        return taken

    def clear(self) -> None:
        """Nothing is known any more."""
        self._parts.clear()
        self.start = self.end = 0
