"""The torch reference, which other devices run, against the host form. The cuda cases need a card."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


@st.composite
def edited_rows(draw: st.DrawFn) -> tuple[torch.Tensor, list[Row]]:
    """Rows of any edits at any depth, of logits as wide as the vocabulary, or of a drafter's that are narrower."""
    vocab = 37
    width = draw(st.sampled_from([20, vocab]))
    ids = st.integers(0, vocab - 1)
    penalty = st.sampled_from([0.0, 0.5, -1.25, 2.0])
    rows = []
    for i in range(draw(st.integers(1, 5))):
        params = SamplingParams(
            temperature=0.0,
            repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.7])),
            frequency_penalty=draw(penalty),
            presence_penalty=draw(penalty),
            logit_bias=draw(st.dictionaries(ids, st.sampled_from([-100.0, -0.5, 3.0]), max_size=4)),
            min_tokens=draw(st.integers(0, 6)),
            stop_token_ids=tuple(draw(st.lists(ids, max_size=3))),
        )
        sampler = Sampler(params, i, 0, draw(st.lists(ids, min_size=1, max_size=6)), vocab, (0,), torch.device("cpu"))
        sampler.advance(draw(st.lists(ids, max_size=5)))
        rows.append(Row(sampler, draw(st.lists(ids, max_size=4)), 9))
    logits = draw(st.lists(st.floats(-50, 50, width=32), min_size=len(rows) * width, max_size=len(rows) * width))
    return torch.tensor(logits).view(len(rows), width), rows


@given(edited_rows())
def test_only_what_is_edited_visits_the_host(drawn: tuple[torch.Tensor, list[Row]]) -> None:
    """Masks, penalties and bias on rows that stay where they are give the bits that whole rows on the host get, and
    leave the samplers as they were."""
    logits, rows = drawn
    edited = logits.clone()
    if any(row.sampler.edits for row in rows):
        sampling.edit_rows(edited, rows)
    for _ in range(2):
        for x, before, row in zip(edited.numpy(), logits.numpy(), rows, strict=True):
            assert row.sampler.process(before, row.path).tobytes() == x.tobytes()
