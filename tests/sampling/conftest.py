"""A toy target with a known next-token distribution, and the sampler written again: one token at a time, in float64.

Nothing here calls the code under test but ``Speculation``, which decodes with it as the engine does.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from specproxy.kernels.walk import walk
from specproxy.sampling.sampler import Row, Sampler, propose_rows, sample_rows
from specproxy.vocabulary import SamplingParams

Draft = tuple[list[int], list[int]]
"""Tokens and parents of a draft tree."""


@dataclass
class ToyTarget:
    """Logits from a table by the last two tokens, with ``padding`` columns behind the vocabulary that must never win.

    With a ``grain`` entries are multiples of it: ties occur, and penalties of that grain are exact in float32. Without
    there are no ties.
    """

    vocab_size: int = 12
    padding: int = 3
    seed: int = 0
    scale: float = 1.5
    grain: float = 1 / 8
    eos: tuple[int, ...] = (1, 4)
    table: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shape = (self.vocab_size, self.vocab_size, self.vocab_size + self.padding)
        self.table = rng.normal(size=shape) * self.scale
        if self.grain:
            self.table = np.round(self.table / self.grain) * self.grain
        self.table[..., self.vocab_size :] = 50.0

    def logits(self, context: Sequence[int]) -> torch.Tensor:
        """Logits[W] float32 after ``context`` (two tokens at least)."""
        return torch.from_numpy(self.table[context[-2], context[-1]].astype(np.float32))


def philox_words(counter: Sequence[int], seed: int) -> list[int]:
    """Philox 4x32-10 on Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed % 2**32, seed // 2**32
    for _ in range(10):
        high0, low0 = divmod(c0 * 0xD2511F53, 2**32)
        high1, low1 = divmod(c2 * 0xCD9E8D57, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


@dataclass
class Oracle:
    """DESIGN's sampling rule for one token, in float64 and plain Python."""

    params: SamplingParams
    prompt: Sequence[int]
    vocab_size: int
    eos: Sequence[int]

    def processed(self, logits: Sequence[float], output: Sequence[int]) -> dict[int, float]:
        """Logit per id that is not masked, after penalties and bias."""
        params, values = self.params, {}
        enders = {*params.stop_token_ids, *([] if params.ignore_eos else self.eos)}
        for token in range(self.vocab_size):
            if token in enders and len(output) < params.min_tokens:
                continue
            value = float(logits[token])
            if token in self.prompt or token in output:
                penalty = params.repetition_penalty
                value = value / penalty if value > 0 else value * penalty
            value -= params.frequency_penalty * output.count(token)
            value -= params.presence_penalty * (token in output)
            values[token] = value + params.logit_bias.get(token, 0.0)
        return values

    def kept(self, logits: Sequence[float], output: Sequence[int]) -> dict[int, float]:
        """Logit ÷ temperature of what the cut-offs leave."""
        params = self.params
        scaled = {token: value / params.temperature for token, value in self.processed(logits, output).items()}
        order = sorted(scaled, key=lambda token: (-scaled[token], token))
        if params.top_k > 0:
            order = order[: params.top_k]
        weights = [math.exp(scaled[token] - scaled[order[0]]) for token in order]
        before = [0.0, *itertools.accumulate(weights)]
        kept = [
            i
            for i, weight in enumerate(weights)
            if i == 0 or ((params.top_p >= 1 or before[i] < params.top_p * before[-1]) and weight >= params.min_p)
        ]
        return {order[i]: scaled[order[i]] for i in kept}

    def probabilities(self, logits: Sequence[float], output: Sequence[int]) -> dict[int, float]:
        """The distribution of the next token at temperature above 0."""
        kept = self.kept(logits, output)
        highest = max(kept.values())
        weights = {token: math.exp(value - highest) for token, value in kept.items()}
        total = sum(weights.values())
        return {token: weight / total for token, weight in weights.items()}

    def token(self, logits: Sequence[float], output: Sequence[int], seed: int, choice: int, position: int) -> int:
        """The next token itself."""
        if self.params.temperature == 0:
            scores = self.processed(logits, output)
        else:
            kept = self.kept(logits, output)
            scores = {token: value + self.noise(seed, choice, position, token) for token, value in kept.items()}
        return min(scores, key=lambda token: (-scores[token], token))

    @staticmethod
    def noise(seed: int, choice: int, position: int, token: int) -> float:
        """Gumbel noise of one id."""
        word = philox_words([choice, position, token // 4, 0], seed)[token % 4]
        return -math.log(-math.log1p(-min((word + 0.5) * 2.0**-32, 1 - 2.0**-24)))


@dataclass
class Speculation:
    """Decodes a sequence as the engine does: draft, sample at every node, walk, commit."""

    target: ToyTarget
    params: SamplingParams
    seed: int = 1
    choice: int = 0
    prompt: tuple[int, ...] = (2, 3, 5)

    def sampler(self) -> Sampler:
        """A fresh sampler of this sequence."""
        target, cpu = self.target, torch.device("cpu")
        return Sampler(self.params, self.seed, self.choice, self.prompt, target.vocab_size, target.eos, cpu)

    def run(self, length: int, draft: Callable[[list[int], Sampler], Draft] | None = None) -> list[int]:
        """``length`` output tokens; ``draft`` gets the committed tokens."""
        sampler, tokens = self.sampler(), list(self.prompt)
        while len(tokens) < len(self.prompt) + length:
            drafted, parents = draft(list(tokens), sampler) if draft else ([], [])
            sampled = self.sample(sampler, tokens, drafted, parents)
            walked = walk(drafted, parents, len(drafted), sampled)
            burst = [*(drafted[node] for node in walked.accepted_nodes), walked.bonus]
            tokens += burst
            sampler.advance(burst)
        return tokens[len(self.prompt) :][:length]

    def sample(self, sampler: Sampler, tokens: list[int], drafted: list[int], parents: list[int]) -> list[int]:
        """The target's samples at the root and at every node, in one call."""
        paths: list[list[int]] = [[]]
        for token, parent in zip(drafted, parents, strict=True):
            paths.append([*paths[parent + 1], token])
        logits = torch.stack([self.target.logits([*tokens, *path]) for path in paths])
        return sample_rows(logits, [Row(sampler, path, len(tokens) + len(path)) for path in paths])

    def coupled(self, drafter: ToyTarget, k: int, b: int = 1) -> Callable[[list[int], Sampler], Draft]:
        """A drafter that applies the request's processors and noise to its own logits: a chain of k, with b - 1 more
        guesses beside each of its nodes."""

        def draft(tokens: list[int], sampler: Sampler) -> Draft:
            drafted: list[int] = []
            parents: list[int] = []
            path: list[int] = []
            parent = -1
            for _ in range(k):
                logits = drafter.logits([*tokens, *path])[None]
                row = Row(sampler, path, len(tokens) + len(path))
                guesses = propose_rows(logits, [row], b).tokens[0]
                first = len(drafted)
                drafted += guesses
                parents += [parent] * len(guesses)
                parent, path = first, [*path, guesses[0]]
            return drafted, parents

        return draft


@pytest.fixture(scope="session")
def toy() -> type[ToyTarget]:
    """The toy target's class."""
    return ToyTarget


@pytest.fixture(scope="session")
def oracle() -> type[Oracle]:
    """The slow sampler's class."""
    return Oracle


@pytest.fixture(scope="session")
def speculation() -> type[Speculation]:
    """The decoding loop's class."""
    return Speculation


@pytest.fixture(scope="session")
def slow_philox() -> Callable[[Sequence[int], int], list[int]]:
    """Philox on Python integers."""
    return philox_words
