"""Prompt lookup: what followed the last time that the text ended like this?

The guess is copied from prompt and output themselves. Each sequence keeps an index from the hash of every n-gram
(``min_n`` to ``max_n`` tokens) to the place after its last occurrence, extended by the tokens of each step, so that a
guess costs the same at any length (about 3 µs; 4 µs per committed token). The longest n that occurs wins, its most
recent occurrence is copied; once a copy has gone on for ``max_n`` tokens it is followed until it breaks, because no
lookup could find a longer match. The state is a function of the tokens alone, never of what was proposed.

Hashes are not verified: 64 bits, and a collision is only a bad guess. Memory: some 110 bytes per token and n.

Source: prompt lookup decoding (Saxena 2023); no code from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from msgspec import Struct

from specproxy.drafters.base import DraftBatch, DraftContext, DraftRow, Memory, Needs
from specproxy.drafters.registry import Host, Options, fingerprint, read_options
from specproxy.vocabulary import MAX_TREE_NODES

_MULTIPLIER = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_BUCKETS = (2, 3, 4, 6, 10)
"""Lengths of the match at which the next confidence bucket begins: 1, 2, 3, 4-5, 6-9, 10 and more tokens."""
_PRIOR = (0.4, 0.5, 0.65, 0.75, 0.85, 0.9)


class NgramOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``min_n`` to ``max_n``: tokens at the end of the text that must occur earlier, shortest and longest tried."""

    min_n: int = 1
    max_n: int = 5
    max_k: int = MAX_TREE_NODES

    def __post_init__(self) -> None:
        if not 1 <= self.min_n <= self.max_n <= 32:
            raise ValueError(f"expected 1 <= min_n <= max_n <= 32, got min_n {self.min_n}, max_n {self.max_n}")
        if not 1 <= self.max_k <= MAX_TREE_NODES:
            raise ValueError(f"expected max_k from 1 to {MAX_TREE_NODES}, got {self.max_k}")


@dataclass
class NgramState:
    """What is known of one sequence's first ``seen`` tokens.

    ``index``: hash of an n-gram -> position after its last occurrence that has a successor. ``source``: position of
    the token that is expected next (-1: none); ``run``: how many tokens before it equal the end of the text (found by
    hash up to ``max_n``, counted on from there).
    """

    index: dict[int, int] = field(default_factory=dict)
    seen: int = 0
    source: int = -1
    run: int = 0


class NgramDrafter:
    """See the module's text. One instance serves all sequences; their memory is ``DraftRow.state``."""

    def __init__(self, name: str, options: NgramOptions) -> None:
        self.name = name
        self.fingerprint = fingerprint("ngram", msgspec.structs.asdict(options))
        self.needs = Needs(max_k=options.max_k, prior=_PRIOR)
        self._min_n = options.min_n
        self._max_n = options.max_n

    def prefill(self, ctx: DraftContext) -> None:
        """Index prompt and committed output from scratch."""
        for row in ctx.rows:
            self._state(row, fresh=True)

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        """Copy what followed the longest, most recent match; no guess where the end of the text is new."""
        for r, row in enumerate(ctx.rows):
            state = self._state(row)
            k = min(row.k, self.needs.max_k)
            if state.source < 0 or k <= 0:
                out.n[r] = 0
                continue
            out.put_chain(r, _copy(row.tokens, state.source, k, state.run), _bucket(state.run))

    def commit(self, ctx: DraftContext) -> None:
        """Index what is new."""
        for row in ctx.rows:
            self._state(row)

    def release(self, seq_id: str) -> None:
        """Nothing to do: the memory goes with ``DraftRow.state``."""

    def memory(self) -> Memory:
        """Neither weights nor KV."""
        return Memory()

    def _state(self, row: DraftRow, fresh: bool = False) -> NgramState:
        state = row.state
        if fresh or not isinstance(state, NgramState):
            state = NgramState()
            row.state = state
            self._index_prompt(state, row.tokens[: row.num_prompt])
        if state.seen < len(row.tokens):
            self._follow(state, row.tokens)
        return state

    def _index_prompt(self, state: NgramState, prompt: Sequence[int]) -> None:
        """The prompt at once, vectorised: one pass over it for each n."""
        ids_T = np.asarray(prompt, np.uint64) + np.uint64(1)
        hash_T = ids_T
        for n in range(1, self._max_n + 1):
            if n > 1:
                hash_T = hash_T[1:] * np.uint64(_MULTIPLIER) + ids_T[: 1 - n]
            if len(hash_T) < 2:
                break
            if n >= self._min_n:
                state.index.update(zip(hash_T[:-1].tolist(), range(n, len(ids_T)), strict=True))
        state.seen = len(prompt)
        if len(prompt):
            self._look_up(state, self._hashes(prompt, len(prompt)))

    def _follow(self, state: NgramState, tokens: Sequence[int]) -> None:
        """Advance over the tokens that are new since the last call, one at a time."""
        hashes = self._hashes(tokens, state.seen) if state.seen else []
        for position in range(state.seen, len(tokens)):
            for key in hashes:
                state.index[key] = position
            if state.source >= 0 and tokens[state.source] == tokens[position]:
                state.source += 1
                state.run += 1
            else:
                state.source, state.run = -1, 0
            hashes = self._hashes(tokens, position + 1)
            if state.run < self._max_n:
                self._look_up(state, hashes)
        state.seen = len(tokens)

    def _hashes(self, tokens: Sequence[int], end: int) -> list[int]:
        """Hashes of the n-grams that end before ``end``, for n from ``min_n`` up to ``max_n``."""
        keys = []
        value = 0
        for n, token in enumerate(reversed(tokens[max(0, end - self._max_n) : end]), start=1):
            value = (value * _MULTIPLIER + token + 1) & _MASK
            if n >= self._min_n:
                keys.append(value)
        return keys

    def _look_up(self, state: NgramState, hashes: Sequence[int]) -> None:
        """Take the longest suffix that the index knows: never shorter than a copy of less than ``max_n`` tokens."""
        for i in range(len(hashes) - 1, -1, -1):
            source = state.index.get(hashes[i])
            if source is not None:
                state.source, state.run = source, i + self._min_n
                return


def _copy(tokens: Sequence[int], source: int, k: int, run: int) -> list[int]:
    """``k`` tokens from ``source`` on. Where the text ends first, go round again if it is known to be periodic."""
    chain = list(tokens[source : source + k])
    period = len(tokens) - source
    if len(chain) < k and run >= period:
        chain = [chain[i % period] for i in range(k)]
    return chain


def _bucket(run: int) -> int:
    bucket = 0
    for start in _BUCKETS:
        bucket += run >= start
    return bucket


def load(name: str, options: Options, host: Host) -> NgramDrafter:
    """Registry loader; needs nothing of the host."""
    return NgramDrafter(name, read_options(NgramOptions, name, "ngram", options))
