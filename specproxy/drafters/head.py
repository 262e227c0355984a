"""EAGLE-1/2/3 and MTP as drafters: a recurrent head over the target's hidden states, chains and trees.

What is committed is taken in with the target's own states, in one forward with the first level of the draft; further
levels run on the head's own. KV of drafted nodes stands behind the committed entries and is overwritten by the next
proposal.

Shapes: T entries, N nodes of a level, R rows, H width of the head, V ids of the target, Vd of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specproxy.drafters.base import ROOT, DraftBatch, DraftContext, DraftRow, Memory, Needs
from specproxy.drafters.forms import Form, drafted_at, likeliest
from specproxy.drafters.growth import Ask, Draw, Grower
from specproxy.drafters.head_forward import CATCH_UP_ROWS, HeadForward
from specproxy.drafters.head_kv import Entries, HeadPages, head_row
from specproxy.drafters.hidden import MAX_WAITING
from specproxy.heads.base import HeadStep, RecurrentHead

if TYPE_CHECKING:
    from specproxy.drafters.lanes import Entry, LaneRows, Lanes

USUAL_RATES = (0.75, 0.14)
"""How often a head's best and second-best guesses are right: what the form of a captured tree is made for."""


class HeadDrafter:
    """See the module's text. ``pages``: the head's KV in the pool's pages."""

    def __init__(
        self,
        name: str,
        head: RecurrentHead,
        pages: HeadPages,
        vocab_size: int,
        max_k: int,
        draw: Draw = "coupled",
        weight_bytes: int = 0,
        *,
        lanes: bool = False,
    ) -> None:
        """``weight_bytes``: what the head holds beside the target. ``lanes``: the target runs in rounds."""
        spec = head.spec
        self.name = name
        self.fingerprint = spec.fingerprint
        self.needs = Needs(
            place="device",
            hidden=spec.hidden,
            own_kv=True,
            window=spec.window,
            max_k=max_k if spec.steps is None else min(max_k, spec.steps),
            branches=True,
            lanes=lanes and spec.capturable and (spec.steps or 1) == 1,
            prior=(0.85,),
        )
        self._head = head
        self._pages = pages
        self._vocab_size = vocab_size
        self._forward = HeadForward(head, pages)
        self._ids, self._known = known_ids(spec.ids, vocab_size)
        self._weight_bytes = weight_bytes
        self._coupled = draw == "coupled"
        self._grower = Grower(self, draw)

    def memory(self) -> Memory:
        """Weights; KV and the states at page ends."""
        return Memory(self._weight_bytes, self._pages.bytes())

    def prefill(self, ctx: DraftContext) -> None:
        """Take in the states of rows where too many wait; the others take them in with their first level."""
        self._absorb([row for row in ctx.rows if len(row.hidden) >= MAX_WAITING], leave=1)

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        """Trees or chains for rows whose last state is known; others get none."""
        for row in ctx.rows:
            if row.hidden.end != len(row.tokens) - 1:
                row.k = 0
        self._grower.propose(ctx, out)

    def commit(self, ctx: DraftContext) -> None:
        """Learn how far margins can be trusted; what was accepted is taken in with the next proposal."""
        self._grower.commit(ctx)

    def release(self, seq_id: str) -> None:
        """Little is kept outside the row and the pages."""
        self._grower.forget(seq_id)

    def begin(self, row: DraftRow) -> None:
        """See LaneDrafter: the entry of the prompt's last state needs the token behind it."""
        self._absorb([row], leave=1)

    def enter(self, row: DraftRow, most: int) -> Entry | None:
        """See LaneDrafter: a row whose last state does not wait cannot be drafted for."""
        from specproxy.drafters.lanes import Entry  # needs Triton, which comes with a GPU

        known, hidden = len(row.tokens), row.hidden
        if not len(hidden) or hidden.end != known - 1 or len(row.pages) * self._pages.kv.page_size < known:
            return None
        waiting = self._pages.hand_over(row)
        if waiting is None:
            return None
        progress, count = head_row(row), waiting.states.shape[0]
        late = count - 1 if count > most else 0
        if late:
            self._forward.compute(row, waiting.position, self._head.fuse(waiting.states[:late]))
            self._pages.keep_ends(row, Entries(waiting.position, waiting.states[:late]))
        progress.next = known - count + late
        self.leave(row, progress.next)
        return Entry(count - late, waiting.states[late:], progress.first)

    def form(self, levels: int, nodes: int, width: int) -> Form:
        """See LaneDrafter."""
        return likeliest(lambda _, rank: USUAL_RATES[rank], levels, nodes, width)

    def draft(self, lanes: Lanes, form: Form) -> Tensor:
        """See LaneDrafter: entries of the target's states, then levels on the head's own."""
        head, kv, group, first = self._head, self._pages.kv, self._head.spec.group, lanes.first
        entries = lanes.entries(group, first)
        rows = [lanes.rows(spots, group, first) for spots in drafted_at(form)]
        positions = [(at.positions - 1).clamp_(min=0) for at in rows]
        step = self._enter_states(lanes, entries)
        states, features = lanes.newest(step.recurrent)[:, None], lanes.newest(step.features)
        tokens: dict[int, Tensor] = {}
        ran: tuple[int, ...] = (ROOT,)
        for level, at in enumerate((None, *rows)):
            if at is not None:
                states = _at(states, [ran.index(form.parents[node]) for node in form.inner[level - 1]])
                ran = form.inner[level - 1]
                ids = torch.stack([tokens[node] for node in ran], 1).flatten()
                step = head.step(ids, states.flatten(0, 1), positions[level - 1], at.plan, kv)
                states, features = step.recurrent.view(states.shape), step.features
            drawn = lanes.pick(head.logits(features), level + 1, head.spec.ids, best=form.width, coupled=self._coupled)
            for node, (parent, rank, depth) in enumerate(form.nodes):
                if depth == level:
                    tokens[node] = drawn[:, ran.index(parent), rank]
        return torch.stack([tokens[node] for node in range(len(tokens))], 1)

    def take_in(self, lanes: Lanes) -> None:
        """See LaneDrafter."""
        self._enter_states(lanes, lanes.entries(self._head.spec.group, lanes.first))

    def _enter_states(self, lanes: Lanes, entries: LaneRows) -> HeadStep:
        """The entries of the target's states that lanes hold, computed."""
        from specproxy.kernels.place import store_page_ends  # needs Triton

        head, kv, taken = self._head, self._pages.kv, lanes.states.flatten(0, 1)
        before = (entries.positions - 1).clamp_(min=0)
        store_page_ends(taken, entries.positions, lanes.numbers.tables, kv.page_size, self._pages.ends(taken))
        return head.step(lanes.tokens, head.fuse(taken), before, entries.plan, kv)

    def leave(self, row: DraftRow, taken: int) -> None:
        """See LaneDrafter. The states at the ends of pages were stored while it drafted."""
        progress = head_row(row)
        self._pages.mark_ended(row, progress.next, taken)
        row.seen = progress.next = taken
        progress.state = None
        progress.states.clear()
        progress.words.clear()

    def catch_up(self, rows: Sequence[DraftRow]) -> Tensor:
        """See growth.Source."""
        features = self._absorb(rows)
        return self._logits(torch.stack(features), 0)

    def extend(self, nodes: Sequence[Ask]) -> Tensor:
        """See growth.Source."""
        batch, states = self._forward.batch(), []
        start = 0
        while start < len(nodes):
            row = nodes[start].row
            end = start
            while end < len(nodes) and nodes[end].row is row:
                end += 1
            batch.add_nodes(row, nodes[start:end])
            states.append((head_row(row), end - start))
            start = end
        module = min(nodes[0].depth, self._forward.modules - 1)
        step = self._forward.run(batch, module)
        at = 0
        for progress, count in states:
            progress.states += step.recurrent[at : at + count].unbind()
            at += count
        return self._logits(step.features, module)

    def _absorb(self, rows: Sequence[DraftRow], leave: int = 0) -> list[Tensor]:
        """Compute all entries that are possible but the last ``leave``; features [H] behind the last one of each row
        that had any."""
        batch, ready, features = self._forward.batch(), [], []
        for row in rows:
            entries = self._pages.take(row, leave)
            if entries is None:
                continue
            progress = head_row(row)
            position, states = entries.position, self._head.fuse(entries.states)
            late = (states.shape[0] - 1) // CATCH_UP_ROWS * CATCH_UP_ROWS
            self._forward.compute(row, position, states[:late])
            position, states = position + late, states[late:]
            batch.add_entries(row, position, states)
            ready.append((progress, len(batch.ids) - 1))
        if not ready:
            return []
        step = self._forward.run(batch)
        self._forward.chain_modules(batch, [progress for progress, _ in ready], step)
        for progress, last in ready:
            progress.state = step.recurrent[last]
            progress.states.clear()
            progress.words.clear()
            features.append(step.features[last])
        return features

    def _logits(self, features: Tensor, module: int) -> Tensor:
        """Scores [N, V] over the target's ids; -inf where the head has no such token."""
        logits = self._head.logits(features, module)
        if self._ids is None:
            return logits
        if self._known is not None:
            logits = logits.index_select(1, self._known)
        wide = logits.new_full((logits.shape[0], self._vocab_size), float("-inf"))
        return wide.index_copy_(1, self._ids, logits)


def known_ids(ids: Tensor | None, vocab_size: int) -> tuple[Tensor | None, Tensor | None]:
    """Of a head's ``ids`` [Vd] those that the tokenizer knows, and where they are, ``None`` where that is everywhere: a
    head's vocabulary may reach into the padding of the target's."""
    if ids is None or bool((ids < vocab_size).all()):
        return ids, None
    known = (ids < vocab_size).nonzero()[:, 0]
    return ids[known], known


def _at(x: Tensor, which: list[int]) -> Tensor:
    """Of x [L, m, ...] the columns ``which``, without an index on the device."""
    return x if which == list(range(x.shape[1])) else torch.stack([x[:, i] for i in which], 1)
