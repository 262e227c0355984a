"""Rows drawn on a GPU, in launches of their own, with one copy to the device and one back.

Shapes: N rows, B sequences among them, W logits a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specproxy.kernels.draw import draw
from specproxy.kernels.draw_rows import DrawRows
from specproxy.kernels.sample import Winners

if TYPE_CHECKING:
    from specproxy.sampling.sampler import Row, Sampler

MOST = 2
"""Ids that are found for each row at most."""


def winners_of(logits: Tensor, rows: Sequence[Row], count: int) -> list[Winners]:
    """The ``count`` best ids of processed logits [N, W], at most MOST."""
    cut = any(
        row.sampler.cut.top_k > 0 or row.sampler.cut.top_p < 1.0 or row.sampler.cut.min_p > 0.0
        for row in rows
        if row.sampler.noise is not None
    )
    drawn = draw(logits, pack_rows(rows, logits.device), count, cutoffs=cut)
    both = torch.stack([drawn.tokens.double(), drawn.scores.double()]).tolist()
    found = []
    for ids, scores in zip(*both, strict=True):
        kept = 1 + sum(score != float("-inf") for score in scores[1:])
        found.append(Winners([int(token) for token in ids[:kept]], scores[:kept]))
    return found


def pack_rows(rows: Sequence[Row], device: torch.device) -> DrawRows:
    """What ``rows`` are drawn with, by one copy: numbers of rows, then of sequences, floats as the bits of float64."""
    lanes: dict[int, int] = {}
    samplers: list[Sampler] = []
    for row in rows:
        if id(row.sampler) not in lanes:
            lanes[id(row.sampler)] = len(samplers)
            samplers.append(row.sampler)
    whole = torch.tensor(
        [
            *(lanes[id(row.sampler)] for row in rows),
            *(row.position for row in rows),
            *(sampler.cut.top_k for sampler in samplers),
            *(signed(sampler.seed) for sampler in samplers),
            *(sampler.choice for sampler in samplers),
            *(sampler.vocab_size for sampler in samplers),
        ]
    )
    parts = torch.tensor(
        [
            *(sampler.cut.temperature for sampler in samplers),
            *(sampler.cut.top_p for sampler in samplers),
            *(sampler.cut.min_p for sampler in samplers),
        ],
        dtype=torch.float64,
    )
    packed = torch.cat([whole, parts.view(torch.int64)]).to(device)
    n, b = len(rows), len(samplers)
    lane, position, top_k, seed, choice, vocab, floats = packed.split([n, n, b, b, b, b, 3 * b])
    temperature, top_p, min_p = floats.view(torch.float64).split(b)
    return DrawRows(
        lane=lane.int(),
        position=position,
        temperature=temperature.float(),
        top_k=top_k.int(),
        top_p=top_p,
        min_p=min_p.float(),
        seed=seed,
        choice=choice,
        vocab=vocab.int(),
    )


def signed(seed: int) -> int:
    """64 bits as a signed number."""
    return seed - 2**64 if seed >= 2**63 else seed
