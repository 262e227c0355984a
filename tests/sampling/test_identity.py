"""Speculation changes no token: the toy target decoded with any draft equals plain decoding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.vocabulary import SamplingParams

PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.0, frequency_penalty=0.75, repetition_penalty=1.5, min_tokens=9),
    SamplingParams(temperature=0.8, top_p=0.9, presence_penalty=0.5, min_tokens=5),
    SamplingParams(temperature=1.2, top_k=6, min_p=0.05, frequency_penalty=0.3, logit_bias={3: 2.0, 6: -100.0}),
]
LENGTH = 24


@st.composite
def _trees(draw):
    n = draw(st.integers(0, 9))
    return [draw(st.integers(-1, i - 1)) for i in range(n)]


def _plain(oracle, run):
    """The answer of the slow sampler, one token at a time."""
    slow = oracle(run.params, run.prompt, run.target.vocab_size, run.target.eos)
    tokens = list(run.prompt)
    for _ in range(LENGTH):
        output = tokens[len(run.prompt) :]
        tokens.append(slow.token(run.target.logits(tokens).tolist(), output, run.seed, run.choice, len(tokens)))
    return tokens[len(run.prompt) :]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.sampled_from(PARAMS), st.integers(0, 2**53), st.lists(_trees(), min_size=1, max_size=8), st.randoms())
def test_random_trees(toy, oracle, speculation, params, seed, shapes, random):
    """Random trees with a mix of right and wrong tokens give the slow sampler's answer."""
    run = speculation(toy(), params, seed, choice=seed % 3)
    plain = _plain(oracle, run)

    def draft(tokens, sampler):
        done = len(tokens) - len(run.prompt)
        parents = shapes[done % len(shapes)]
        depth, drafted = [], []
        for parent in parents:
            depth.append(depth[parent] + 1 if parent >= 0 else 0)
            at = done + depth[-1]
            right = at < LENGTH and random.random() < 0.7
            drafted.append(plain[at] if right else random.randrange(run.target.vocab_size))
        return drafted, parents

    assert run.run(LENGTH, draft) == plain


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("b", [1, 2, 3])
def test_coupled_drafts(toy, oracle, speculation, params, b):
    """Chains and trees from a drafter that shares the noise give the slow sampler's answer, in far fewer steps."""
    target, drafter = toy(), toy(scale=1.5)
    drafter.table = target.table + np.random.default_rng(9).normal(size=target.table.shape) * 0.3
    run = speculation(target, params, seed=77)
    steps, draft = [], run.coupled(drafter, 5, b)

    def counted(tokens, sampler):
        steps.append(len(tokens))
        return draft(tokens, sampler)

    assert run.run(LENGTH, counted) == _plain(oracle, run)
    assert len(steps) < LENGTH * 0.6


def test_same_model_as_drafter_is_always_accepted(toy, speculation):
    """A coupled drafter with the target's own logits proposes exactly what the target samples."""
    run = speculation(toy(), SamplingParams(temperature=1.0, top_p=0.9, frequency_penalty=0.5), seed=3)
    steps, draft = [], run.coupled(run.target, 7)

    def counted(tokens, sampler):
        steps.append(len(tokens))
        return draft(tokens, sampler)

    run.run(LENGTH, counted)
    assert len(steps) == LENGTH // 8


def test_seed_and_choice_change_the_answer(toy, speculation):
    """Another seed or another choice index gives another text."""
    target, params = toy(), SamplingParams(temperature=1.0)
    texts = [speculation(target, params, seed, choice).run(LENGTH) for seed, choice in ((1, 0), (2, 0), (1, 1))]
    assert texts[0] != texts[1] != texts[2] != texts[0]
    assert texts[0] == speculation(target, params, 1, 0).run(LENGTH)
