"""With speculation on, tokens are drawn from the target's own distribution, penalties and cut-offs included.

Each token's conditional distribution is known exactly, but differs from token to token, since penalties depend on the
whole history. So each token is mapped to ``F(before it) + uniform * p(token)``, F the cumulative distribution over ids
in the order of the drafter's preference: what a faulty verification favours or shuns. If tokens follow their
distributions these values are independent and uniform, and a chi-square test over equal bins applies to all of them
together.
"""

import itertools
import math

import numpy as np
import scipy.stats

from specproxy.sampling.sampler import Row, propose_rows, sample_rows
from specproxy.vocabulary import SamplingParams

PARAMS = SamplingParams(
    temperature=1.0, top_p=0.9, frequency_penalty=0.25, presence_penalty=0.25, repetition_penalty=1.25
)
SEQUENCES, LENGTH, BINS = 250, 84, 40


def _models(toy):
    """A target without ties, and a drafter that resembles it."""
    target, drafter = toy(grain=0), toy(grain=0)
    drafter.table = target.table + np.random.default_rng(1).normal(size=target.table.shape)
    return target, drafter


def _p_value(oracle, run, drafter, texts):
    """Chi-square p-value of ``texts`` (one output per sequence) against the distribution they should follow."""
    slow = oracle(run.params, run.prompt, run.target.vocab_size, run.target.eos)
    rng = np.random.default_rng(0)
    values = []
    for text in texts:
        for i, token in enumerate(text):
            context = [*run.prompt, *text[:i]]
            probabilities = slow.probabilities(run.target.logits(context).tolist(), text[:i])
            liked = drafter.logits(context).tolist()
            before = sum(p for v, p in probabilities.items() if liked[v] > liked[token])
            values.append(before + rng.random() * probabilities[token])
    assert len(values) >= 20_000
    return float(scipy.stats.chisquare(np.histogram(values, BINS, (0.0, 1.0))[0]).pvalue)


def test_speculation_keeps_the_distribution(toy, oracle, speculation):
    """Chi-square over 21,000 tokens decoded with coupled trees and with random chains passes."""
    (target, drafter), rng = _models(toy), np.random.default_rng(2)
    texts, bursts = [], 0

    def wrong(tokens, sampler):
        return rng.integers(0, target.vocab_size, 3).tolist(), [-1, 0, 1]

    for seed in range(SEQUENCES):
        run = speculation(target, PARAMS, seed)
        draft = run.coupled(drafter, 3, 2) if seed % 2 else wrong

        def counted(tokens, sampler, draft=draft):
            nonlocal bursts
            bursts += 1
            return draft(tokens, sampler)

        texts.append(run.run(LENGTH, counted))
    assert bursts < SEQUENCES * LENGTH * 0.75
    assert _p_value(oracle, run, drafter, texts) > 0.01


def test_control_noise_without_position(toy, oracle, speculation):
    """Noise keyed without the position fails the same test: the sample of one token would predict the next."""
    target, drafter = _models(toy)
    texts = []
    for seed in range(SEQUENCES):
        run = speculation(target, PARAMS, seed)
        sampler, tokens = run.sampler(), list(run.prompt)
        for _ in range(LENGTH):
            token = sample_rows(target.logits(tokens)[None], [Row(sampler, [], len(run.prompt))])[0]
            sampler.advance([token])
            tokens.append(token)
        texts.append(tokens[len(run.prompt) :])
    assert _p_value(oracle, run, drafter, texts) < 1e-4


def test_control_shared_noise_with_a_ratio_test(toy, oracle, speculation):
    """Coupled drafts verified by rejection sampling, its residual drawn with the same noise, fail the same test."""
    (target, drafter), rng = _models(toy), np.random.default_rng(3)
    texts = []
    for seed in range(SEQUENCES):
        run = speculation(target, PARAMS, seed)
        slow = oracle(PARAMS, run.prompt, target.vocab_size, target.eos)
        sampler, tokens, text = run.sampler(), list(run.prompt), []
        for position in itertools.count(len(tokens)):
            if len(text) == LENGTH:
                break
            guess = propose_rows(drafter.logits(tokens)[None], [Row(sampler, [], position)]).tokens[0][0]
            p = slow.probabilities(target.logits(tokens).tolist(), text)
            q = slow.probabilities(drafter.logits(tokens).tolist(), text)
            token = guess
            if rng.random() * q[guess] > p.get(guess, 0.0):
                rest = {v: p[v] - q.get(v, 0.0) for v in p if p[v] > q.get(v, 0.0)}
                noise = sampler.noise.row(position)
                token = max(rest, key=lambda v: math.log(rest[v]) + float(noise[v]))
            sampler.advance([token])
            tokens.append(token)
            text.append(token)
        texts.append(text)
    assert _p_value(oracle, run, drafter, texts) < 1e-4
