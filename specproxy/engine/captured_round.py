"""One round as captured work: from what the last one committed to what this one commits.

Shapes: L lanes, N drafted nodes of a lane, T = L * (N + 1) rows, W tokens that a round commits to a lane at most, D
hidden width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from typing import Any

import torch
from torch import Tensor

from specproxy.drafters.forms import run_of, verified_at
from specproxy.drafters.lanes import LaneDrafter, Lanes
from specproxy.engine.graphs import Captured
from specproxy.engine.round_shapes import RoundKey
from specproxy.engine.runner import Runner
from specproxy.engine.verify import NO_TOKEN
from specproxy.kernels.compact import compact
from specproxy.kernels.tree_walk import tree_walk
from specproxy.models.base import query_group


class LaneWork(ABC):
    """Work over lanes that is the same launches each time. ``out`` [L, 1 + 2 * W] int64: what it says of each lane."""

    def __init__(self, lanes: Lanes, key: RoundKey) -> None:
        self._lanes, self._key = lanes, key
        device = lanes.numbers.known.device
        self.out = torch.zeros(key.lanes, 1 + 2 * lanes.shape.most, dtype=torch.int64, device=device)
        self._graph: Captured | None = None

    def capture(self, pool: Any) -> None:
        """Replay a graph from now on. ``pool``: see Captured. The lanes must be empty: capturing runs the work."""
        self._enter()
        self._graph = Captured(self._work, pool)

    def replay(self) -> None:
        """Enqueue the work: its graph, or launch by launch where none was captured."""
        self._enter()
        if self._graph is None:
            self._work()
        else:
            self._graph.replay()

    def _enter(self) -> None:
        self._lanes.cutoffs, self._lanes.reach = self._key.cutoffs, self._key.reach

    @abstractmethod
    def _work(self) -> None:
        """The launches."""


class Round(LaneWork):
    """One round. ``out``: how many tokens a lane's sequence gets, then these, then their rows among the lane's.
    ``logits`` [T, V] and ``taps``, the captured states [T, D], are overwritten by the next round."""

    def __init__(
        self, runner: Runner, lanes: Lanes, drafter: LaneDrafter | None, reads: Rows[int], key: RoundKey
    ) -> None:
        """``reads``: states that the drafter reads, in its order."""
        super().__init__(lanes, key)
        self._model, self._kv, self._group = runner.model, runner.kv, query_group(runner.model)
        self._drafter, self._reads = drafter, reads
        form = key.verified
        self._spots = run_of(0, 1) if form is None else verified_at(form)
        device, count = self.out.device, key.lanes
        self.logits = torch.zeros(0, 0)
        self.taps: Mapping[int, Tensor] = {}
        parents = torch.tensor(() if form is None else form.parents, dtype=torch.int64, device=device)
        self._parents = parents.expand(count, key.nodes).contiguous()
        self._starts = torch.arange(count, device=device)[:, None] * len(self._spots)
        self._order = torch.arange(key.levels + 1, device=device).expand(count, key.levels + 1)

    def _work(self) -> None:
        lanes, hidden = self._lanes, self._key.hidden
        lanes.begin()
        rows = lanes.rows(self._spots, self._group)
        ids, drafted = lanes.newest(lanes.tokens)[:, None], self._draft()
        if drafted is not None:
            ids = torch.cat([ids, drafted], 1)
        self.logits, taps = self._model.forward(ids.flatten(), rows.positions, rows.plan, self._kv, None, hidden)
        self.taps = dict(zip(hidden, taps, strict=True))
        drawn = lanes.draw(self.logits, self._spots)
        sampled = drawn.tokens[:, 0].masked_fill(drawn.scores[:, 0].isnan(), NO_TOKEN).view(ids.shape)
        self._commit(sampled, *self._walk(drafted, sampled))

    def _draft(self) -> Tensor | None:
        """What is verified in every lane [L, N]: drafts, or in their place what the host gave."""
        lanes, form, verified = self._lanes, self._key.form, self._key.verified
        drafted = None
        if self._drafter is not None and form is not None:
            drafted = self._drafter.draft(lanes, form)
        elif self._drafter is not None:
            self._drafter.take_in(lanes)
        return lanes.given(self._key.nodes, drafted) if verified is not None and verified.is_chain else drafted

    def _walk(self, drafted: Tensor | None, sampled: Tensor) -> tuple[Tensor, Tensor]:
        """How many tokens every lane gets [L], and at which of its rows they were sampled [L, levels + 1]."""
        lanes, form, live = self._lanes, self._key.verified, self._lanes.numbers.live
        if form is None or drafted is None:
            return live, self._order
        most = lanes.numbers.limit.clamp(max=self._key.nodes)
        found = tree_walk(drafted, self._parents, most, sampled)
        fresh = live + found.length * live
        if form.is_chain:
            return fresh, self._order
        compact(self._kv, lanes.numbers.tables, lanes.last, found.accepted, found.length * live)
        path = found.accepted[:, : form.depth] + 1
        return fresh, torch.cat([self._order[:, :1], path], 1)

    def _commit(self, sampled: Tensor, fresh: Tensor, at: Tensor) -> None:
        """Write down what every lane gets, for the next round and for the host."""
        lanes, numbers, count = self._lanes, self._lanes.numbers, self._key.levels + 1
        tree = self._key.form is not None and not self._key.form.is_chain
        tokens = sampled.gather(1, at) if tree else sampled
        if self._reads:
            states = torch.cat([self.taps[i] for i in self._reads], 1)
            if tree:
                states = states.index_select(0, (self._starts + at).flatten())
            lanes.states[:, :count].copy_(states.view(-1, count, lanes.shape.states))
        numbers.recent[:, :count].copy_(tokens)
        numbers.fresh.copy_(fresh)
        numbers.known.add_(fresh)
        most = lanes.shape.most
        self.out[:, 0].copy_(fresh)
        self.out[:, 1 : 1 + count].copy_(tokens)
        self.out[:, 1 + most : 1 + most + count].copy_(at)


class DraftRound(LaneWork):
    """The drafting part of a round alone, for sequences that are verified in an ordinary step. ``out``: nothing, then
    the tokens [L, N]."""

    def __init__(self, lanes: Lanes, drafter: LaneDrafter, key: RoundKey) -> None:
        super().__init__(lanes, key)
        self._drafter = drafter

    def _work(self) -> None:
        if self._key.form is not None:
            self._lanes.begin()
            tokens = self._drafter.draft(self._lanes, self._key.form)
            self.out[:, 1 : 1 + tokens.shape[1]].copy_(tokens)
