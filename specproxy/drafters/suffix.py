"""Suffix decoding: what followed, in earlier answers of the same route, the last time that an answer ended like this?

Agents, extraction and templates say the same things again in other requests. Answers are kept per group (route and
tenant, so nobody's text shows in another's timing), newest first to stay; an index from every run of ``min_match``
tokens to its latest places finds candidates, which are compared token by token, backwards. The longest match counts
most: candidates vote for the next token with their lengths, those outvoted drop out, and so on along the chain. A match
of n tokens supports a chain of ``factor`` times n.

Memory is bounded by ``max_tokens`` over all groups, some 320 bytes each; beyond, the answer that grew longest ago goes
as a whole. A token costs 2 µs to take in, a guess of 12 tokens 21 µs (AMD EPYC Zen 4).

Source: SuffixDecoding (Oliaro et al., arXiv 2411.04975), which keeps suffix trees with counts; no code from there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from msgspec import Struct

from specproxy.drafters.base import DraftBatch, DraftContext, DraftRow, Memory, Needs
from specproxy.drafters.registry import Host, Options, fingerprint, read_options
from specproxy.vocabulary import MAX_TREE_NODES

MAX_MATCH = 32
"""Tokens compared backwards: a longer match is not more telling."""
PLACES = 8
"""Latest places remembered of one run of tokens."""
_BUCKETS = (6, 10, 20)
"""Lengths of the match at which the next confidence bucket begins."""
_PRIOR = (0.5, 0.65, 0.8, 0.9)


class SuffixOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``min_match``: tokens that must agree. ``factor``: drafted tokens for each that does. ``max_tokens``: kept over
    all routes and tenants."""

    min_match: int = 4
    factor: int = 4
    max_tokens: int = 200_000
    max_k: int = MAX_TREE_NODES

    def __post_init__(self) -> None:
        if not 1 <= self.min_match <= MAX_MATCH:
            raise ValueError(f"expected min_match from 1 to {MAX_MATCH}, got {self.min_match}")
        if self.factor < 1 or self.max_tokens < 1:
            raise ValueError(f"expected factor and max_tokens of 1 or more, got {self.factor}, {self.max_tokens}")
        if not 1 <= self.max_k <= MAX_TREE_NODES:
            raise ValueError(f"expected max_k from 1 to {MAX_TREE_NODES}, got {self.max_k}")


@dataclass(eq=False)
class _Answer:
    """One answer of a group, with the end of its prompt in front. ``skipped``: tokens of the sequence before these."""

    group: str
    skipped: int
    tokens: list[int] = field(default_factory=list)


class _Place(NamedTuple):
    """Where an answer goes on after a run of tokens."""

    answer: _Answer
    at: int

    def token(self, further: int) -> int | None:
        """The token that follows, or one ``further`` on; ``None`` behind the answer's end."""
        at = self.at + further
        return self.answer.tokens[at] if at < len(self.answer.tokens) else None


_Run = tuple[int, ...]


class SuffixDrafter:
    """See the module's text."""

    def __init__(self, name: str, options: SuffixOptions) -> None:
        self.name = name
        self.fingerprint = fingerprint("suffix", msgspec.structs.asdict(options))
        self.needs = Needs(max_k=options.max_k, prior=_PRIOR)
        self._options = options
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._index: dict[str, dict[_Run, list[_Place]]] = {}
        self.num_tokens = 0

    def prefill(self, ctx: DraftContext) -> None:
        """Take in what is committed; a sequence that begins again is known already."""
        for row in ctx.rows:
            self._learn(row)

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        """The chain that the matching places agree on; no guess where none matches."""
        for r, row in enumerate(ctx.rows):
            out.n[r] = 0
            answer = self._learn(row)
            matches = self._matches(answer)
            if matches:
                length = max(matches.values())
                k = min(row.k, self.needs.max_k, self._options.factor * length)
                out.put_chain(r, _vote(matches, k), sum(length >= start for start in _BUCKETS))

    def commit(self, ctx: DraftContext) -> None:
        """Take in what is new."""
        for row in ctx.rows:
            self._learn(row)

    def release(self, seq_id: str) -> None:
        """The answer stays: it is what the next ones are drafted from."""

    def memory(self) -> Memory:
        """Neither weights nor KV."""
        return Memory()

    def _learn(self, row: DraftRow) -> _Answer:
        """The row's answer, up to date and indexed."""
        answer = self._answers.get(row.seq_id)
        if answer is None or answer.group != row.group:
            skipped = max(0, row.num_prompt - MAX_MATCH)
            answer = self._answers[row.seq_id] = _Answer(row.group, skipped)
        new = row.tokens[answer.skipped + len(answer.tokens) :]
        if new:
            self._answers.move_to_end(row.seq_id)
            self._append(answer, new)
            while self.num_tokens > self._options.max_tokens and len(self._answers) > 1:
                self._forget(*next(iter(self._answers.items())))
        return answer

    def _append(self, answer: _Answer, new: Sequence[int]) -> None:
        index, n = self._index.setdefault(answer.group, {}), self._options.min_match
        start = len(answer.tokens)
        answer.tokens += new
        self.num_tokens += len(new)
        for end in range(max(start, n), len(answer.tokens)):
            places = index.setdefault(tuple(answer.tokens[end - n : end]), [])
            places.append(_Place(answer, end))
            if len(places) > PLACES:
                del places[0]

    def _forget(self, seq_id: str, answer: _Answer) -> None:
        """Drop an answer and what points to it."""
        del self._answers[seq_id]
        self.num_tokens -= len(answer.tokens)
        index, n = self._index[answer.group], self._options.min_match
        for end in range(n, len(answer.tokens)):
            run = tuple(answer.tokens[end - n : end])
            left = [place for place in index.get(run, ()) if place.answer is not answer]
            if left:
                index[run] = left
            else:
                index.pop(run, None)
        if not index:
            del self._index[answer.group]

    def _matches(self, answer: _Answer) -> dict[_Place, int]:
        """Places that the end of ``answer`` matches, with the length of the match."""
        n, tail = self._options.min_match, answer.tokens
        found = self._index.get(answer.group, {}).get(tuple(tail[-n:]), ())
        matches = {}
        for place in found:
            tokens, length = place.answer.tokens, n
            most = min(MAX_MATCH, place.at, len(tail))
            while length < most and tokens[place.at - length - 1] == tail[-length - 1]:
                length += 1
            matches[place] = length
        return matches


def _vote(matches: dict[_Place, int], k: int) -> list[int]:
    """The chain of at most ``k`` tokens that the places agree on; a place counts as the square of its match's length,
    of equals the latest wins."""
    chain: list[int] = []
    alive = list(matches.items())
    while len(chain) < k:
        votes: dict[int, int] = {}
        heard = [(place.token(len(chain)), place, length) for place, length in alive]
        for token, _, length in heard:
            if token is not None:
                votes[token] = votes.pop(token, 0) + length * length
        if not votes:
            break
        best = max(reversed(votes), key=votes.__getitem__)
        alive = [(place, length) for token, place, length in heard if token == best]
        chain.append(best)
    return chain


def load(name: str, options: Options, host: Host) -> SuffixDrafter:
    """Registry loader; needs nothing of the host."""
    return SuffixDrafter(name, read_options(SuffixOptions, name, "suffix", options))
