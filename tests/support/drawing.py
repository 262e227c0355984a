"""Parameters of rows to draw, on a device of choice."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specproxy.kernels.draw_rows import DrawRows

Cuts = Sequence[tuple[float, int, float, float]]
"""Temperature, top_k, top_p and min_p of each lane."""

PLAIN: Cuts = [(0.8, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (1.7, 0, 1.0, 0.0)]

CUTS: Cuts = [
    *PLAIN[:3],
    (1.0, 50, 1.0, 0.0),
    (1.3, 1, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (2.0, 0, 0.3, 0.0),
    (1.0, 0, 1e-9, 0.0),
    (1.0, 0, 1.0, 0.05),
    (1.3, 40, 0.8, 0.02),
    (0.01, 7, 0.99, 0.0),
    (1.0, 10**6, 0.999999, 0.0),
    (0.0, 5, 0.5, 0.5),
]


def draw_rows(rows: int, cuts: Cuts, vocab: int, lanes: Sequence[int] | None = None, device: str = "cpu") -> DrawRows:
    """``rows`` rows that take turns on the lanes of ``cuts``, or are on ``lanes``; seeds and positions of every
    size."""
    lane = lanes or [i % len(cuts) for i in range(rows)]
    temperature, top_k, top_p, min_p = zip(*cuts, strict=True)
    return DrawRows(
        lane=torch.tensor(lane, dtype=torch.int32, device=device),
        position=torch.arange(rows, device=device) * 1001 + 7,
        temperature=torch.tensor(temperature, dtype=torch.float32, device=device),
        top_k=torch.tensor(top_k, dtype=torch.int32, device=device),
        top_p=torch.tensor(top_p, dtype=torch.float64, device=device),
        min_p=torch.tensor(min_p, dtype=torch.float32, device=device),
        seed=torch.arange(len(cuts), device=device) * 0x1234567890AB - 99,
        choice=torch.arange(len(cuts), device=device),
        vocab=torch.full((len(cuts),), vocab, dtype=torch.int32, device=device),
    )
