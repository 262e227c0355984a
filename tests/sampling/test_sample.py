import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.kernels.sample import Cut, first_in_order, keep_mask, winners, winners_host


def _order(z):
    return sorted(range(len(z)), key=lambda i: (-z[i], i))


def _slow_keep(z, cut):
    """What the cut-offs keep, by a plain sort and float64 sums."""
    order = _order(z)
    if cut.top_k > 0:
        order = order[: cut.top_k]
    weights = [math.exp(float(z[i]) - float(z[order[0]])) for i in order]
    total, before, kept = sum(weights), 0.0, set()
    for rank, (i, weight) in enumerate(zip(order, weights, strict=True)):
        if rank == 0 or ((cut.top_p >= 1 or before < cut.top_p * total) and weight >= cut.min_p):
            kept.add(i)
        before += weight
    return kept


def _mask(z, cut):
    tensors = torch.tensor([cut.top_k]), torch.tensor([cut.top_p], dtype=torch.float64), torch.tensor([cut.min_p])
    return set(torch.nonzero(keep_mask(torch.from_numpy(z)[None], *tensors)[0])[:, 0].tolist())


_CUTS = st.builds(
    Cut,
    temperature=st.sampled_from([0.0, 0.5, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 5, 1000]),
    top_p=st.sampled_from([0.0, 0.13, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.03, 0.4, 1.0]),
)
_LOGITS = st.lists(st.integers(-24, 24), min_size=1, max_size=40).map(lambda v: np.array(v, np.float32) / 8)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(_LOGITS, _CUTS, st.integers(0, 2**31), st.integers(1, 6))
def test_both_forms_against_a_plain_sort(x, cut, seed, count):
    """Logits full of ties, any cut-offs: host form, torch form and a plain sort keep the same ids and choose alike."""
    noise = np.random.default_rng(seed).gumbel(size=len(x)).astype(np.float32)
    z = x / np.float32(cut.temperature) if cut.temperature else x
    kept = _slow_keep(z, cut) if cut.temperature else set(range(len(x)))
    if cut.temperature:
        assert _mask(z, cut) == kept
    scores = z + noise if cut.temperature else x
    expected = sorted(kept, key=lambda i: (-scores[i], i))[:count]
    host = winners_host(x, noise, cut, count)
    assert host.ids == expected
    assert host.scores == [float(scores[i]) for i in expected]
    assert winners(torch.from_numpy(x)[None], torch.from_numpy(noise)[None], [cut], count) == [host]


def test_both_forms_on_wide_rows():
    """Rows of a real vocabulary's width with different parameters: the batched and the single form agree."""
    rng = np.random.default_rng(3)
    cuts = [Cut(t, k, p, m) for t in (0.3, 1.0) for k in (0, 50) for p in (0.9, 1.0) for m in (0.0, 0.02)] + [Cut(0.0)]
    x = (rng.normal(size=(len(cuts), 8192)) * 3).astype(np.float32)
    noise = rng.gumbel(size=x.shape).astype(np.float32)
    batch = winners(torch.from_numpy(x), torch.from_numpy(noise), cuts, 3)
    assert batch == [winners_host(x[i], noise[i], cut, 3) for i, cut in enumerate(cuts)]


def test_inputs_are_left_alone():
    """Neither logits nor noise are written to."""
    x, noise = np.arange(9, dtype=np.float32), np.ones(9, np.float32)
    for cut in (Cut(0.0), Cut(1.0), Cut(0.7, 3, 0.5, 0.1)):
        for count in (1, 3):
            winners_host(x, noise, cut, count)
            winners(torch.from_numpy(x)[None], torch.from_numpy(noise)[None], [cut], count)
    assert np.array_equal(x, np.arange(9))
    assert np.array_equal(noise, np.ones(9))


def test_ties_go_to_the_lowest_id():
    """Equal scores, greedy or perturbed, with cut-offs or without, give the lowest id."""
    x, noise = np.array([1, 3, 2, 3, 3], np.float32), np.zeros(5, np.float32)
    for cut in (Cut(0.0), Cut(1.0), Cut(1.0, top_k=2), Cut(1.0, top_p=0.5), Cut(1.0, min_p=0.9)):
        assert winners_host(x, noise, cut, 1).ids == [1]
        assert winners(torch.from_numpy(x)[None], torch.from_numpy(noise)[None], [cut])[0].ids == [1]
    assert winners_host(x, noise, Cut(1.0, top_k=2), 5).ids == [1, 3]


def test_top_k_cuts_ties_by_id():
    """Exactly k ids stay, the lowest of those that tie at the limit."""
    z = np.array([0, 2, 1, 1, 1, 5], np.float32)
    assert _mask(z, Cut(top_k=3)) == {1, 2, 5}
    assert winners_host(z, np.zeros(6, np.float32), Cut(top_k=4), 6).ids == [5, 1, 2, 3]
    assert first_in_order(z, 4).tolist() == [5, 1, 2, 3]
    assert first_in_order(z, 0).tolist() == []


def test_top_p_counts_what_top_k_left():
    """The mass of top_p is that of the ids which top_k kept."""
    z = np.zeros(10, np.float32)
    assert _mask(z, Cut(top_k=4, top_p=0.5)) == {0, 1}
    assert winners_host(z, np.arange(10, dtype=np.float32), Cut(1.0, 4, 0.5), 9).ids == [1, 0]


def test_top_p_zero_is_greedy():
    """The best id is always kept: top_p = 0 and min_p = 1 leave it alone."""
    x, noise = np.array([1.0, 2.0, 1.5], np.float32), np.array([50.0, 0.0, 9.0], np.float32)
    for cut in (Cut(top_p=0.0), Cut(min_p=1.0), Cut(top_k=1)):
        assert winners_host(x, noise, cut, 3) == ([1], [2.0])


@pytest.mark.parametrize("cut", [Cut(1e-45), Cut(1e-320), Cut(1e-38, top_p=0.5), Cut(1e-38, top_k=2)])
def test_tiny_temperature_is_greedy(cut):
    """A division that overflows means the argmax of the logits, not a tie of infinities."""
    x, noise = np.array([0.0, 40.0, 41.0, -3.0], np.float32), np.array([9.0, 9.0, 0.0, 0.0], np.float32)
    assert winners_host(x, noise, cut).ids == [2]
    assert winners(torch.from_numpy(x)[None], torch.from_numpy(noise)[None], [cut])[0].ids == [2]


@pytest.mark.parametrize("cut", [Cut(0.0), Cut(1.0), Cut(0.5, top_p=0.9), Cut(1.0, top_k=2), Cut(1.0, min_p=0.1)])
def test_infinite_and_huge_logits(cut):
    """An infinite logit wins, the lowest id among several; huge logits stay ordered; -inf never wins."""
    noise = np.array([0.0, 0.0, 1.0, 2.0], np.float32)
    for values, best in (
        ([1.0, np.inf, 2.0, np.inf], 1),
        ([-np.inf, 3.0, -np.inf, -np.inf], 1),
        ([-3e38, -1e38, -3e38, -np.inf], 1),
        ([3e38, 1e38, 2e38, 0.0], 0),
    ):
        x = np.array(values, np.float32)
        assert winners_host(x, noise, cut).ids == [best]
        assert winners(torch.from_numpy(x)[None], torch.from_numpy(noise)[None], [cut])[0].ids == [best]


def test_no_logit_at_all():
    """The score tells the caller that everything was -inf, or that there was NaN."""
    noise = np.zeros(3, np.float32)
    for cut in (Cut(0.0), Cut(1.0), Cut(1.0, top_p=0.5)):
        assert winners_host(np.full(3, -np.inf, np.float32), noise, cut).scores == [-math.inf]
        assert math.isnan(winners_host(np.array([1, np.nan, 2], np.float32), noise, cut).scores[0])
        both = torch.tensor([[-math.inf] * 3, [1.0, math.nan, 2.0]])
        scores = [found.scores[0] for found in winners(both, torch.zeros(2, 3), [cut] * 2)]
        assert scores[0] == -math.inf
        assert math.isnan(scores[1])
