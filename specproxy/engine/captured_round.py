"""One round as captured work: from what the last one committed to what this one commits.

Shapes: L lanes, W tokens that a round commits to a lane at most, T = L * (K + 1) rows, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from specproxy.drafters.lanes import LaneDrafter, Lanes
from specproxy.engine.graphs import Captured
from specproxy.engine.runner import Runner
from specproxy.engine.verify import NO_TOKEN
from specproxy.kernels.tree_walk import tree_walk
from specproxy.models.base import query_group


class RoundKey(NamedTuple):
    """What a round is captured for. ``drafter``: "" for plain decoding. ``hidden``: states that are captured."""

    drafter: str
    lanes: int
    k: int
    cutoffs: bool
    reach: int
    hidden: tuple[int, ...]


class _Work(Protocol):
    """Captured work."""

    def replay(self) -> None:
        """Enqueue it."""
        ...


class _Uncaptured:
    """The same work, launch by launch, where there are no graphs."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work


class Round:
    """One captured round. ``out`` [L, 1 + W] int64: how many tokens a lane's sequence gets, then these. ``logits``
    [T, V] and ``taps``, the captured states [T, D], are overwritten by the next round."""

    def __init__(
        self, runner: Runner, lanes: Lanes, drafter: LaneDrafter | None, reads: Rows[int], key: RoundKey, pool: Any
    ) -> None:
        """``reads``: states that the drafter reads, in its order. ``pool``: see Captured. The lanes must be empty:
        capturing runs the work."""
        self._model, self._kv, self._group = runner.model, runner.kv, query_group(runner.model)
        self._lanes, self._drafter, self._reads, self._key = lanes, drafter, reads, key
        device = runner.model.spec.device
        count = key.lanes
        self.out = torch.zeros(count, 1 + lanes.shape.most, dtype=torch.int64, device=device)
        self.logits = torch.zeros(0, 0)
        self.taps: Mapping[int, Tensor] = {}
        self._parents = torch.arange(-1, key.k - 1, device=device).expand(count, key.k).contiguous()
        self._enter()
        self._graph: _Work = Captured(self._work, pool) if pool is not None else _Uncaptured(self._work)

    def _enter(self) -> None:
        self._lanes.cutoffs, self._lanes.reach = self._key.cutoffs, self._key.reach

    def replay(self) -> None:
        """Enqueue the round."""
        self._enter()
        self._graph.replay()

    def _work(self) -> None:
        lanes, numbers, k = self._lanes, self._lanes.numbers, self._key.k
        lanes.begin()
        rows = lanes.run(0, k + 1, self._group)
        ids = lanes.newest(lanes.tokens)[:, None]
        chain = None if self._drafter is None else self._drafter.draft(lanes, k)
        if chain is not None:
            ids = torch.cat([ids, chain], 1)
        hidden = self._key.hidden
        self.logits, taps = self._model.forward(ids.flatten(), rows.positions, rows.plan, self._kv, None, hidden)
        drawn = lanes.draw(self.logits, k + 1)
        sampled = drawn.tokens[:, 0].masked_fill(drawn.scores[:, 0].isnan(), NO_TOKEN).view(-1, k + 1)
        fresh = numbers.live
        if chain is not None:
            most = numbers.limit.clamp(max=k)
            fresh = fresh + tree_walk(chain, self._parents, most, sampled).length * fresh
        self.taps = dict(zip(hidden, taps, strict=True))
        if self._reads:
            states = torch.cat([self.taps[i] for i in self._reads], 1)
            lanes.states[:, : k + 1].copy_(states.view(-1, k + 1, lanes.shape.states))
        numbers.recent[:, : k + 1].copy_(sampled)
        numbers.fresh.copy_(fresh)
        numbers.known.add_(fresh)
        self.out[:, 0].copy_(fresh)
        self.out[:, 1 : k + 2].copy_(sampled)
