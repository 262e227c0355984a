"""The one sampler: which token follows, given the target's logits, the request's parameters and its seed.

In this order, all float32: masks (padding of the vocabulary, grammar, min_tokens) → repetition, frequency, presence
penalty → logit bias → ÷ temperature → top_k → top_p → min_p → + noise → argmax, ties to the lowest id.
``kernels/sample.py`` defines everything from the temperature on, ``kernels/philox.py`` the noise. Verification and
coupled drafting call the same code: they differ in whose logits they pass and in how many tokens they want.

Rows are independent: each is computed by operations on its own logits alone.

Shapes: N rows, V ids the tokenizer knows, W >= V logits per row (or W < V for a drafter with a smaller head).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from specproxy.errors import BadLogits, InvalidRequest
from specproxy.kernels.sample import Cut, Winners, first_in_order, winners, winners_host
from specproxy.sampling.chances import chances
from specproxy.sampling.edits import Edit, as_bools, edit_rows, enders
from specproxy.sampling.history import Entries, History
from specproxy.sampling.noise import Noise
from specproxy.structured.grammars import Matcher
from specproxy.vocabulary import SamplingParams, TokenLogprob


class Sampler:
    """The sampling state of one sequence: its parameters, its noise and what its committed text does to its logits.

    ``seed``, ``choice``: keys of the noise. ``plain_greedy``: the token is the argmax of the raw logits, whatever the
    history. ``needs_history``: the path to a node changes its logits; where false a row's ``path`` is ignored.
    ``edits``: masks, penalties or bias may change logits. ``num_output``: committed output tokens.
    """

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        choice: int,
        prompt: Sequence[int],
        vocab_size: int,
        model_eos: Sequence[int],
        device: torch.device,
        grammar: Matcher | None = None,
    ) -> None:
        """``seed``: 64 bits. ``choice``: index of this answer within its prompt. ``device``: where the logits are.
        ``grammar``: that of ``params``, at its beginning.

        Raises InvalidRequest where a biased id is not in the vocabulary, min_tokens leaves no token to choose, or the
        parameters' grammar is not given.
        """
        if bool(params.grammar) != (grammar is not None):
            raise InvalidRequest("this answer has a grammar, and nothing here follows it", param="response_format")
        self.params = params
        self.seed = seed
        self.choice = choice
        self.vocab_size = vocab_size
        self.cut = Cut(params.temperature, params.top_k, params.top_p, params.min_p)
        self.noise = Noise(seed, choice, vocab_size, device) if params.temperature > 0 else None
        self.num_output = 0
        self._num_prompt = len(prompt)
        if not all(0 <= token < vocab_size for token in params.logit_bias):
            raise InvalidRequest(f"logit_bias: ids must be from 0 to {vocab_size - 1}", param="logit_bias")
        self._history = History(params, prompt, vocab_size)
        self._enders = enders(params, model_eos, vocab_size)
        self._grammar = grammar
        self.edits = self._history.active or bool(len(self._enders)) or grammar is not None
        self.plain_greedy = self.noise is None and not self.edits
        self.needs_history = self._history.penalises or bool(len(self._enders)) or grammar is not None

    def advance(self, tokens: Sequence[int]) -> None:
        """These tokens are committed."""
        self.num_output += len(tokens)
        if self._history.penalises:
            self._history.push(tokens)
        if self._grammar is not None:
            self._grammar.advance(tokens)
        if self.noise is not None:
            self.noise.forget_before(self._num_prompt + self.num_output)

    def rollback(self, n: int) -> None:
        """Take back the last n committed tokens."""
        self.num_output -= n
        if self._history.penalises:
            self._history.pop(n)
        if self._grammar is not None:
            self._grammar.rollback(n)

    def fork(self) -> Sampler:
        """An independent copy with the same noise."""
        return copy.deepcopy(self, {id(self.noise): self.noise})

    def process(self, x: np.ndarray, path: Sequence[int]) -> np.ndarray:
        """Logits x[V] float32 after masks, penalties and bias at the node that ``path`` leads to; ``x`` itself where
        nothing applies, else a copy."""
        if not self.edits:
            return x
        masked, allowed, entries = self.edit(path, len(x))
        if not len(masked) and not len(entries.ids) and allowed is None:
            return x
        x = x.copy()
        x[masked] = -np.inf
        if allowed is not None:
            x[~as_bools(allowed, len(x))] = -np.inf
        x[entries.ids] = self.changed(entries, x[entries.ids])
        return x

    def edit(self, path: Sequence[int], width: int) -> Edit:
        """What a row of ``width`` logits undergoes at the node that ``path`` leads to."""
        if self._history.penalises:
            self._history.push(path)
        entries = self._history.entries(width)
        if self._history.penalises:
            self._history.pop(len(path))
        allowed = None if self._grammar is None else self._grammar.allowed(path)
        return Edit(self._masked(len(path), width), allowed, entries)

    @property
    def constrained(self) -> bool:
        """Whether a grammar says what may follow."""
        return self._grammar is not None

    def allows(self, path: Sequence[int], token: int) -> bool:
        """Whether the grammar has ``token`` behind ``path``: a draft ends before one that it has not."""
        return self._grammar is None or self._grammar.allows(path, token)

    def forced(self, limit: int, path: Sequence[int] = ()) -> list[int]:
        """Tokens behind the drafted ``path`` that the grammar leaves no choice about, in the usual spelling: a good
        guess, no certainty."""
        return [] if self._grammar is None else self._grammar.forced(limit, path)

    @property
    def fault(self) -> str:
        """Why no token can be sampled, whatever the logits; empty where one can."""
        return "" if self._grammar is None else self._grammar.fault

    def changed(self, entries: Entries, values: np.ndarray) -> np.ndarray:
        """What the logits ``values`` float32 of ``entries.ids`` become."""
        return self._history.changed(entries, values)

    def distribution(self, logits: torch.Tensor, path: Sequence[int] = ()) -> np.ndarray:
        """Probabilities [W] float64 of the token behind ``path``, from logits[W], W at most V: all but the noise."""
        return chances(self.process(logits.detach()[: self.vocab_size].float().cpu().numpy(), path), self.cut)

    def lowest_allowed(self, path: Sequence[int]) -> int | None:
        """The token where every id that is not masked has logit -inf; ``None`` where all are masked."""
        masked, allowed, _ = self.edit(path, self.vocab_size)
        free = np.ones(self.vocab_size, np.bool_) if allowed is None else as_bools(allowed, self.vocab_size)
        free[masked] = False
        return int(free.argmax()) if free.any() else None

    def _masked(self, depth: int, width: int) -> np.ndarray:
        """Ids below ``width`` that min_tokens masks ``depth`` tokens after the committed ones."""
        if len(self._enders) and self.num_output + depth < self.params.min_tokens:
            return self._enders[: np.searchsorted(self._enders, width)]
        return self._enders[:0]


class Row(NamedTuple):
    """A token to sample: ``path``: what is drafted between the last committed token and the node whose logits these
    are, that node included; ``position``: absolute position of the token to be sampled."""

    sampler: Sampler
    path: Sequence[int]
    position: int


class Proposals(NamedTuple):
    """``tokens[N]``: at most b ids each, best first, at least one. ``margins[N]``: how clearly each was drawn, which
    predicts acceptance: the best one's distance to the second best perturbed score, inf where only one id is left;
    of the others the distance to the best, negative."""

    tokens: list[list[int]]
    margins: list[list[float]]


def sample_rows(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """One token per row from the target's logits[N, W] (any float dtype; not changed).

    Raises BadLogits naming the rows whose logits hold NaN.
    """
    if all(row.sampler.plain_greedy for row in rows):
        tokens, scores = _argmax(_float_rows(logits, rows))
    else:
        found = _winners(logits, rows, 1)
        tokens, scores = [row.ids[0] for row in found], [row.scores[0] for row in found]
    bad = [i for i, score in enumerate(scores) if math.isnan(score)]
    if bad:
        raise BadLogits(bad)
    return tokens


def propose_rows(logits: torch.Tensor, rows: Sequence[Row], b: int = 1, *, coupled: bool = True) -> Proposals:
    """Coupled drafting: what ``sample_rows`` would choose from a drafter's logits[N, W], the b best, and margins.

    Not ``coupled``: the likeliest ids after the same processors, noise left out. NaN gives any token, with margin 0.
    """
    found = _winners(logits, rows, max(b, 2), coupled=coupled)
    return Proposals([row.ids[:b] for row in found], [_margins(row.scores)[: len(row.ids[:b])] for row in found])


def token_logprobs(
    logits: torch.Tensor, chosen: Sequence[int], top: int, vocab_size: int | None = None
) -> list[TokenLogprob]:
    """Log-softmax of raw logits[N, W] in float32 at ``chosen[N]``, with the ``top`` best, ties to the lowest id.

    The sum runs over all W logits, as in transformers; alternatives are looked for below ``vocab_size`` only. A logit
    of -inf has logprob -inf.
    """
    rows = logits.detach().float().cpu().numpy()
    return [_logprob(x, token, top, vocab_size) for x, token in zip(rows, chosen, strict=True)]


def _winners(logits: torch.Tensor, rows: Sequence[Row], count: int, *, coupled: bool = True) -> list[Winners]:
    """The best ids of each row, with their scores; without the noise where not ``coupled``."""
    if logits.is_cuda and count <= 2 and coupled:
        found = _drawn(logits, rows, count)
    elif logits.device.type == "cpu":
        x = _float_rows(logits, rows)
        found = [_winners_on_host(x_row, row, count, coupled) for x_row, row in zip(x.numpy(), rows, strict=True)]
    else:
        found = _winners_on_device(_float_rows(logits, rows), rows, count, coupled)
    for row, best in zip(rows, found, strict=True):
        if best.scores[0] == -math.inf:
            lowest = row.sampler.lowest_allowed(row.path)
            best.ids[0], best.scores[0] = (0, math.nan) if lowest is None else (lowest, -math.inf)
    return found


def _drawn(logits: torch.Tensor, rows: Sequence[Row], count: int) -> list[Winners]:
    """Rows on a GPU by its kernels."""
    from specproxy.sampling.on_device import winners_of

    if any(row.sampler.edits for row in rows):
        logits = _float_rows(logits, rows).clone()
        edit_rows(logits, rows)
    return winners_of(logits, rows, count)


def _winners_on_host(x: np.ndarray, row: Row, count: int, coupled: bool = True) -> Winners:
    """One row on the CPU: numpy on a row that fits the first-level cache beats batched torch several times."""
    sampler, noise = row.sampler, None
    if sampler.noise is not None:
        noise = sampler.noise.row(row.position).numpy()[: len(x)] if coupled else np.zeros_like(x)
    return winners_host(sampler.process(x, row.path), noise, sampler.cut, count)


def _winners_on_device(x: torch.Tensor, rows: Sequence[Row], count: int, coupled: bool = True) -> list[Winners]:
    """All rows on another device, or what its kernels do not find, by the torch reference."""
    x, noise = x.clone(), torch.zeros_like(x)
    if any(row.sampler.edits for row in rows):
        edit_rows(x, rows)
    for i, (sampler, _, position) in enumerate(rows):
        if sampler.noise is not None and coupled:
            noise[i] = sampler.noise.row(position)[: x.shape[-1]]
    return winners(x, noise, [row.sampler.cut for row in rows], count)


def _argmax(x: torch.Tensor) -> tuple[list[int], list[float]]:
    """Argmax and maximum of each row. On the CPU by numpy: 4 us for 8 rows of 8192, where torch takes 25."""
    if x.device.type != "cpu":
        values, ids = x.max(-1)
        return ids.tolist(), values.tolist()
    rows = x.numpy()
    best = rows.argmax(-1)
    return best.tolist(), rows[np.arange(len(rows)), best].tolist()


def _float_rows(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """logits[N, W] as float32 without the padding of the vocabulary; the same memory where possible."""
    if len(rows) != len(logits):
        raise ValueError(f"{len(logits)} rows of logits for {len(rows)} rows to sample")
    return logits.detach()[:, : rows[0].sampler.vocab_size].float() if rows else logits


def _margins(scores: list[float]) -> list[float]:
    """See Proposals."""
    if len(scores) < 2:
        return [math.inf]
    if not math.isfinite(scores[0]):
        return [0.0] * len(scores)
    return [scores[0] - scores[1], *(score - scores[0] for score in scores[1:])]


def _logprob(x: np.ndarray, token: int, top: int, vocab_size: int | None) -> TokenLogprob:
    """Logprob and alternatives of one row x[W] float32."""
    highest = x.max()
    norm = float(highest) + math.log(float(np.exp(x - highest).sum(dtype=np.float64)))
    known = x[:vocab_size]
    best = first_in_order(known, min(top, len(known))).tolist()
    return TokenLogprob(token, float(x[token]) - norm, [(i, float(x[i]) - norm) for i in best])
