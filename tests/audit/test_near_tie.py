"""The rule for near-ties: whatever bounded errors can do is explained, and what they cannot do is not."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.audit.near_tie import judge
from specproxy.kernels.sample import winners_host
from specproxy.sampling.sampler import Sampler
from specproxy.vocabulary import SamplingParams

VOCAB = 6
POSITION = 4
PROMPT = (0, 3, 3, 5)

PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "noise": {"temperature": 0.7},
    "top_k": {"temperature": 1.0, "top_k": 3},
    "top_p": {"temperature": 1.3, "top_p": 0.7},
    "min_p": {"temperature": 0.9, "min_p": 0.2},
    "cutoffs": {"temperature": 1.1, "top_k": 4, "top_p": 0.8, "min_p": 0.05},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.4, "frequency_penalty": 0.3, "top_p": 0.8},
    "greedy_penalties": {"temperature": 0.0, "repetition_penalty": 1.4, "presence_penalty": 0.6},
    "bias": {"temperature": 0.8, "logit_bias": {1: 2.0, 2: -1.0}, "min_tokens": 5},
}
UNCUT = ["greedy", "noise", "greedy_penalties", "bias"]

floats = st.floats(-3, 3, width=32)
rows = st.lists(floats, min_size=VOCAB, max_size=VOCAB).map(lambda values: np.array(values, np.float32))
errors = st.lists(st.one_of(st.sampled_from([-1.0, 1.0]), st.floats(-1, 1)), min_size=VOCAB, max_size=VOCAB)
epsilons = st.sampled_from([0.0, 1e-5, 0.05, 0.4])
named = st.sampled_from(list(PARAMS))


def sampler(name: str, seed: int) -> Sampler:
    """A sampler behind the prompt and one token of output."""
    made = Sampler(SamplingParams(**PARAMS[name]), seed, 0, PROMPT[:3], VOCAB, (4,), torch.device("cpu"))
    made.advance(PROMPT[3:])
    return made


def drawn(x: np.ndarray, by: Sampler) -> int:
    """The token that these logits give."""
    noise = None if by.noise is None else by.noise.row(POSITION).numpy()
    return winners_host(by.process(x, ()), noise, by.cut).ids[0]


def perturbed(x: np.ndarray, errors: list[float], eps: float) -> np.ndarray:
    """``x`` with each logit off by a share of ``eps``, in float32 and not by more."""
    error = np.array(errors, np.float32) * np.float32(eps)
    return np.clip(x + error, x - np.float32(eps), x + np.float32(eps))


@settings(max_examples=800, deadline=None)
@given(name=named, x=rows, off=errors, eps=epsilons, seed=st.integers(0, 2**20))
def test_what_errors_can_do_is_explained(name: str, x: np.ndarray, off: list[float], eps: float, seed: int) -> None:
    """Any logits within eps of the reference's that give another token: that token is explained, whatever the
    parameters."""
    by = sampler(name, seed)
    served = drawn(perturbed(x, off, eps), by)
    found = judge(x, served, by, POSITION, eps)
    assert found.expected == drawn(x, by)
    assert served == found.expected or found.explained


@settings(max_examples=600, deadline=None)
@given(name=st.sampled_from(UNCUT), x=rows, served=st.integers(0, VOCAB - 1), eps=epsilons, seed=st.integers(0, 2**20))
def test_without_cutoffs_what_is_explained_can_happen(
    name: str, x: np.ndarray, served: int, eps: float, seed: int
) -> None:
    """A token is explained only if the errors that favour it most, and rounding, do give it."""
    by = sampler(name, seed)
    found = judge(x, served, by, POSITION, eps)
    wide = np.float32(eps * 1.001 + 1e-5)
    best = x - wide
    best[served] = x[served] + wide
    if found.explained:
        assert drawn(best, by) == served
    elif found.expected != served:
        near = x - np.float32(eps)
        near[served] = x[served] + np.float32(eps)
        assert drawn(near, by) != served


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p", "cutoffs"])
def test_with_cutoffs_little_is_explained_that_cannot_happen(name: str) -> None:
    """Most of the tokens that are explained are given by some corner of the box of errors: where cut-offs and scores
    ask for opposite errors the rule lets a few pass that none gives."""
    rng = np.random.default_rng(5)
    corners = [np.array(signs, np.float32) for signs in itertools.product((-1, 1), repeat=VOCAB)]
    eps, explained, possible = np.float32(0.15), 0, 0
    for seed in range(250):
        x, by = rng.normal(0, 1.5, VOCAB).astype(np.float32), sampler(name, seed)
        reachable = {drawn(x + corner * eps, by) for corner in corners}
        for served in range(VOCAB):
            if judge(x, served, by, POSITION, float(eps)).explained:
                explained += 1
                possible += served in reachable
    assert explained > 50
    assert possible >= 0.8 * explained


def test_masked_and_cut_tokens_are_never_explained() -> None:
    """A token that a mask or a clear cut-off forbids is a hard mismatch, however close its perturbed score."""
    x = np.array([2.0, 2.0, 2.0, 2.0, 2.0, -9.0], np.float32)
    assert not judge(x, 4, sampler("bias", 1), POSITION, 0.5).explained
    for seed in range(200):
        by = Sampler(SamplingParams(temperature=5.0, top_k=5), seed, 0, PROMPT, VOCAB, (), torch.device("cpu"))
        assert not judge(x, 5, by, POSITION, 0.5).explained


def test_logits_that_are_no_numbers_have_no_expected_token() -> None:
    """NaN from the stock path is reported as such; nothing is explained by it."""
    x = np.array([1.0, np.nan, 0.0, 0.0, 0.0, 0.0], np.float32)
    for name in ("greedy", "noise", "cutoffs"):
        found = judge(x, 0, sampler(name, 3), POSITION, 0.1)
        assert (found.expected, found.explained) == (None, False)
