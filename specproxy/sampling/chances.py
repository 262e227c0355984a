"""What a token is drawn from, as probabilities: for measurements. The sampler itself never needs them.

Shapes: V ids.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from specproxy.kernels.sample import Cut, keep_mask


def chances(x: np.ndarray, cut: Cut) -> np.ndarray:
    """Probabilities [V] float64 from processed logits x[V] float32, under temperature and cut-offs; it sorts the ids.

    At temperature 0 the argmax has it all.
    """
    if cut.temperature == 0.0:
        greedy = np.zeros(len(x))
        greedy[x.argmax()] = 1.0
        return greedy
    z = torch.from_numpy(x[None]) / cut.temperature
    top_k, min_p = torch.tensor([cut.top_k]), torch.tensor([cut.min_p], dtype=torch.float32)
    kept = keep_mask(z, top_k, torch.tensor([cut.top_p], dtype=torch.float64), min_p)
    found: np.ndarray = z.double().masked_fill(~kept, -math.inf).softmax(-1)[0].numpy()
    return found
