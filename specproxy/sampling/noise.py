"""The sampling noise of one sequence, kept in blocks so that draft and target share what one of them computed."""

from __future__ import annotations

import torch

from specproxy.kernels.philox import gumbel, gumbel_host

BLOCK_ELEMENTS = 2**16
"""Positions of one block times vocabulary. At V = 8192 this is 8 positions, 41 us each on one thread of an AMD EPYC
(Zen 5); 1 position a block costs 107 us each, 4 cost 51, and 16 or more cost 92, since they leave the second-level
cache and the allocator's reused memory."""

_LOOKAHEAD = 128
"""Positions that may stay cached: two of the deepest drafts. A block is never longer than half of it."""


class Noise:
    """Gumbel noise G(seed, choice, position, id) of one sequence.

    Blocks start at multiples of their own length, so an element is always computed at the same place of an array of the
    same shape: what a vectorised logarithm does at an array's end cannot depend on scheduling.
    """

    def __init__(self, seed: int, choice: int, vocab_size: int, device: torch.device) -> None:
        self._seed = seed
        self._choice = choice
        self._vocab_size = vocab_size
        self._device = device
        self._positions = max(1, min(_LOOKAHEAD // 2, BLOCK_ELEMENTS // vocab_size))
        self._most = _LOOKAHEAD // self._positions + 2
        self._blocks: dict[int, torch.Tensor] = {}

    def row(self, position: int) -> torch.Tensor:
        """Noise[V] float32 of one absolute position, on this noise's device; not to be written to."""
        index, offset = divmod(position, self._positions)
        block = self._blocks.get(index)
        if block is None:
            block = self._compute(index)
            while len(self._blocks) >= self._most:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[index] = block
        return block[offset]

    def forget_before(self, position: int) -> None:
        """Drop blocks that end before ``position``; they are computed again if asked for."""
        first = position // self._positions
        for index in [index for index in self._blocks if index < first]:
            del self._blocks[index]

    def _compute(self, index: int) -> torch.Tensor:
        start, n = index * self._positions, self._positions
        if self._device.type == "cpu":
            return torch.from_numpy(gumbel_host(self._seed, self._choice, start, n, self._vocab_size))
        return gumbel(self._seed, self._choice, start, n, self._vocab_size, self._device)
