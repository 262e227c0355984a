"""Medusa heads as drafter: every level guessed at once, from the target's last hidden state alone.

What a head guesses does not depend on what the others do, so the tree's form is fixed before anything is known of this
token: nodes are paths of ranks ("the second best of head 1 below the best of head 0"), and the best form for n nodes is
that of the n likeliest paths, from how often each rank of each head was right (Medusa: Cai et al., arXiv 2401.10774,
section 2.3.3). Those accuracies are counted as answers come, and the form follows them.

Drawing is coupled: each head's logits go through the request's processors and noise at the head's position.

Shapes: R rows, D width of the target, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specproxy.drafters.base import ROOT, DraftBatch, DraftContext, DraftRow, Memory, Needs
from specproxy.drafters.forms import Form, likeliest
from specproxy.drafters.growth import Draw
from specproxy.heads.base import ParallelHead
from specproxy.sampling.sampler import Row, propose_rows

if TYPE_CHECKING:
    from specproxy.drafters.lanes import Entry, Lanes

RANKS = 6
"""Candidates of a head that may stand in a tree."""
DECAY = 0.998
PRIOR_WEIGHT = 20.0
RESHAPE_EVERY = 32
"""Answers to drafts between two looks at whether another form is better."""


@dataclass
class _Progress:
    """``state`` [D]: behind the token before the last committed one. ``parents``, ``ranks`` of the draft's nodes."""

    state: Tensor | None = None
    parents: Sequence[int] = ()
    ranks: Sequence[int] = ()


class Accuracies:
    """How often rank r of head i was the token, its predecessors being right: decayed counts, a prior to begin with."""

    def __init__(self, heads: int) -> None:
        self._hits = [[PRIOR_WEIGHT * _prior(i, r) for r in range(RANKS)] for i in range(heads)]
        self._tries = [PRIOR_WEIGHT] * heads

    def rate(self, head: int, rank: int) -> float:
        """Chance that this rank of this head is right."""
        return self._hits[head][rank] / self._tries[head]

    def observe(self, head: int, ranks: int, right: int | None) -> None:
        """Of the first ``ranks`` candidates of a head the one of rank ``right`` was the token, or none."""
        hits, before = self._hits[head], self._tries[head]
        after = self._tries[head] = before * DECAY + 1.0
        for rank in range(RANKS):
            if rank < ranks:
                hits[rank] = hits[rank] * DECAY + (rank == right)
            else:  # not drafted, so not known to be wrong: it keeps its rate
                hits[rank] *= after / before

    def form(self, heads: int, nodes: int, width: int) -> Form:
        """The likeliest ``nodes`` paths over the first ``heads`` heads and ``width`` ranks of each."""
        return likeliest(self.rate, heads, nodes, min(width, RANKS))


class MedusaDrafter:
    """See the module's text."""

    def __init__(
        self,
        name: str,
        head: ParallelHead,
        max_k: int,
        draw: Draw = "coupled",
        weight_bytes: int = 0,
        *,
        lanes: bool = False,
    ) -> None:
        """``weight_bytes``: what the heads hold beside the target. ``lanes``: the target runs in rounds."""
        spec = head.spec
        steps = spec.steps or 1
        self.name = name
        self.fingerprint = spec.fingerprint
        self.needs = Needs(
            place="device",
            hidden=spec.hidden,
            window=spec.window,
            max_k=min(max_k, steps),
            branches=True,
            lanes=lanes and spec.capturable,
            prior=(0.6,),
        )
        self.accuracies = Accuracies(steps)
        self._head = head
        self._forms: dict[tuple[int, int, int], Form] = {}
        self._answered = 0
        self._coupled = draw == "coupled"
        self._weight_bytes = weight_bytes

    def memory(self) -> Memory:
        """Weights; a state a sequence does not count."""
        return Memory(self._weight_bytes)

    def prefill(self, ctx: DraftContext) -> None:
        """Only the last state matters."""
        for row in ctx.rows:
            self._take(row)

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        """One product for all rows; then what stands at each row's ranks."""
        ready = [(i, row) for i, row in enumerate(ctx.rows) if self._take(row) and row.k > 0]
        if not ready:
            return
        states = [state for _, row in ready if (state := _progress(row).state) is not None]
        logits = self._head.logits(torch.stack(states))
        paths: list[list[int]] = [[] for _ in ready]
        drawn: list[list[list[int]]] = [[] for _ in ready]
        for level in range(max(row.k for _, row in ready)):
            # The history of a node off the first path is taken for that of the first path: it is only a guess.
            rows = [
                Row(row.sampler, path, len(row.tokens) + level) for (_, row), path in zip(ready, paths, strict=True)
            ]
            for at, tokens in enumerate(propose_rows(logits[level], rows, RANKS, coupled=self._coupled).tokens):
                drawn[at].append(tokens)
                paths[at].append(tokens[0])
        for (i, row), candidates in zip(ready, drawn, strict=True):
            self._write(i, row, candidates, out)

    def begin(self, row: DraftRow) -> None:
        """See LaneDrafter: only the last state matters."""

    def enter(self, row: DraftRow, most: int) -> Entry | None:
        """See LaneDrafter: only the last state matters."""
        from specproxy.drafters.lanes import Entry  # needs Triton, which comes with a GPU

        if not self._take(row):
            return None
        state = _progress(row).state
        return None if state is None else Entry(1, state[None])

    def form(self, levels: int, nodes: int, width: int) -> Form:
        """See LaneDrafter: by what was expected before anything was counted, as captured work keeps its form."""
        return likeliest(_prior, levels, nodes, width)

    def draft(self, lanes: Lanes, form: Form) -> Tensor:
        """See LaneDrafter: one product for all levels."""
        logits, best = self._head.logits(lanes.newest(lanes.states.flatten(0, 1))), form.width
        drawn = [lanes.pick(logits[level], level + 1, best=best, coupled=self._coupled) for level in range(form.depth)]
        return torch.stack([drawn[level][:, 0, rank] for level, rank in zip(form.levels, form.ranks, strict=True)], 1)

    def take_in(self, lanes: Lanes) -> None:
        """See LaneDrafter: only the last state matters, and it stands in the lane."""

    def leave(self, row: DraftRow, taken: int) -> None:
        """See LaneDrafter: the state that it had is none of the last one's any more."""
        _progress(row).state = None

    def catch_up(self, rows: Sequence[DraftRow]) -> Tensor:
        """Scores [R, V] behind each row's last token: the first head's (growth.Source, for measurements)."""
        states = [state for row in rows if self._take(row) and (state := _progress(row).state) is not None]
        return self._head.logits(torch.stack(states))[0]

    def _write(self, i: int, row: DraftRow, candidates: list[list[int]], out: DraftBatch) -> None:
        progress, number = _progress(row), {ROOT: ROOT}
        tokens: list[int] = []
        parents: list[int] = []
        ranks: list[int] = []
        for node, (parent, rank, level) in enumerate(self._form(row).nodes):
            if parent not in number or rank >= len(candidates[level]):
                continue
            number[node] = len(tokens)
            tokens.append(candidates[level][rank])
            parents.append(number[parent])
            ranks.append(rank)
        out.put_tree(i, tokens, parents)
        progress.parents, progress.ranks = parents, ranks

    def _form(self, row: DraftRow) -> Form:
        """The tree for what the row may draft; of width 1, a chain of first ranks."""
        key = (row.k, row.room, row.width)
        if key not in self._forms:
            self._forms[key] = self.accuracies.form(*key)
        return self._forms[key]

    def commit(self, ctx: DraftContext) -> None:
        """Count which ranks were right at every node that was reached."""
        for row in ctx.rows:
            progress, reached = _progress(row), [ROOT, *row.path]
            for level, node in enumerate(reached[: self.needs.max_k]):
                children = [i for i, parent in enumerate(progress.parents) if parent == node]
                if children:
                    right = reached[level + 1] if level + 1 < len(reached) else None
                    rank = progress.ranks[right] if right is not None else None
                    self.accuracies.observe(level, len(children), rank)
            progress.parents, progress.ranks = (), ()
            self._answered += 1
            if self._answered % RESHAPE_EVERY == 0:
                self._forms.clear()

    def release(self, seq_id: str) -> None:
        """Nothing is kept outside the row."""

    def _take(self, row: DraftRow) -> bool:
        """Note the last state that waits; whether it is that of the token before the last committed one."""
        if not isinstance(row.state, _Progress):
            row.state = _Progress()
        hidden, last = row.hidden, len(row.tokens) - 1
        if len(hidden):
            end = hidden.end
            _progress(row).state = hidden.take(end)[-1].clone()
            return end == last
        return hidden.end == last and _progress(row).state is not None


def _prior(head: int, rank: int) -> float:
    """What is expected before anything was seen: each head and each rank half as good as the one before."""
    return 0.6 * 0.75**head * 0.4**rank


def _progress(row: DraftRow) -> _Progress:
    if not isinstance(row.state, _Progress):
        raise TypeError(f"row {row.seq_id} has another drafter's state")
    return row.state
