"""Sampling as a GPU does it, in Triton's interpreter, against the host's."""

from __future__ import annotations

import numpy as np
import torch

from specproxy.kernels.sample import winners_host
from specproxy.sampling.on_device import winners_of
from specproxy.sampling.sampler import Row, Sampler
from specproxy.vocabulary import SamplingParams

PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.8, top_p=0.9),
    SamplingParams(temperature=0.7, top_k=40, min_p=0.01),
]


def test_rows_of_all_kinds_equal_the_hosts():
    """Tokens and scores of every kind of row, the second best too; padding ids are never drawn."""
    vocab, device = 1027, torch.device("cpu")
    logits = torch.randn(len(PARAMS) * 3, vocab + 13, generator=torch.Generator().manual_seed(5)) * 3
    logits[:, vocab:] = 100
    samplers = [Sampler(params, 2**53 - 7 + i, i, [1, 2], vocab, (0,), device) for i, params in enumerate(PARAMS)]
    rows = [Row(samplers[i % len(PARAMS)], (), 40 + i) for i in range(len(logits))]
    for x, row, one in zip(logits[:, :vocab].numpy(), rows, winners_of(logits, rows, 2), strict=True):
        noise = row.sampler.noise.row(row.position).numpy() if row.sampler.noise else None
        expected = winners_host(np.ascontiguousarray(x), noise, row.sampler.cut, 2)
        assert one.ids == expected.ids
        np.testing.assert_allclose(one.scores, expected.scores, atol=1e-5, rtol=1e-5)
