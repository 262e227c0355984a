"""The torch reference, which other devices run, against the host form. The cuda cases need a card."""

import numpy as np
import pytest
import torch

from specproxy.kernels.philox import gumbel, gumbel_host, philox
from specproxy.sampling import sampler as sampling
from specproxy.sampling.sampler import Row, Sampler
from specproxy.vocabulary import SamplingParams

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.8, top_p=0.95),
    SamplingParams(temperature=0.7, top_k=40, min_p=0.01),
    SamplingParams(temperature=0.9, frequency_penalty=0.5, repetition_penalty=1.2, top_p=0.9),
    SamplingParams(temperature=0.0, logit_bias={3: 5.0}, min_tokens=9, stop_token_ids=(4,)),
]


@pytest.mark.parametrize("device", DEVICES)
def test_integers_are_equal_on_every_device(device):
    """Philox words are the same integers wherever they are computed."""
    rng = np.random.default_rng(0)
    counter = [torch.from_numpy(rng.integers(0, 2**32, (64, 257))) for _ in range(4)]
    for seed in (0, 2**53 - 1, 2**64 - 1):
        there = philox(tuple(word.to(device) for word in counter), seed)
        for a, b in zip(there, philox(tuple(counter), seed), strict=True):
            assert torch.equal(a.cpu(), b)
    there = gumbel(7, 1, 1000, 4, 1027, torch.device(device)).cpu().numpy()
    np.testing.assert_allclose(there, gumbel_host(7, 1, 1000, 4, 1027), atol=4e-6, rtol=4e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_all_kinds(device):
    """Every kind of parameters gives the tokens of the host form, and scores that differ by rounding only."""
    vocab = 1027
    logits = torch.randn(len(PARAMS) * 4, vocab + 5, generator=torch.Generator().manual_seed(0)) * 3
    logits[5, :vocab] = -torch.inf  # nothing to choose from: the lowest id that min_tokens leaves
    samplers = {
        place: [Sampler(PARAMS[i % 6], i, 0, (1, 2), vocab, (0,), torch.device(place)) for i in range(len(logits))]
        for place in ("cpu", device)
    }
    here, there = ([Row(s, [7, 9], 4 + i) for i, s in enumerate(samplers[place])] for place in ("cpu", device))
    expected = sampling._winners(logits, here, 3)
    found = sampling._winners_on_device(sampling._float_rows(logits.to(device), there), there, 3)
    assert found[5].scores[0] == expected[5].scores[0] == -torch.inf
    for i in {*range(len(logits))} - {5}:
        assert found[i].ids == expected[i].ids
        assert found[i].scores == pytest.approx(expected[i].scores, abs=1e-4)
    assert sampling.sample_rows(logits.to(device), there) == [best.ids[0] for best in expected]
