"""Ragged paged attention: many sequences, one flat list of rows, keys in pages.

Contract. Row t of a span attends to every key of its sequence before the span, and inside the span to itself and its
ancestors: causal order for chains and prefill chunks, 64-bit ancestor words for trees. A row's result is bitwise
independent of the other rows, of where it stands, and of how far the keys are padded, provided that

* how many keys a row is given is a function of its own position: the next multiple of ``KEY_BLOCK``. A reduction of
  another length is summed in another order, so rows of one span that lie in different key blocks go through different
  calls (padded to the span's end instead, rows look invariant until a span crosses a boundary);
* query rows come in multiples of ``QUERY_ROWS``: the kernel cuts them into tiles of 32, and a tile of one to three
  rows takes another code path (33 rows have such a tail);
* masked slots hold finite numbers: a masked NaN still reaches the output as 0 x NaN. ``KVBuffers.write`` sees to it.

It does not know whether this holds on the machine at hand; the engine's self-test measures that.

Sequences that are read equally far go through one call, as lanes of a batch: views where their pages lie at even
distances, a gather where not. Grouped-query heads are folded into rows (token-major), so a key head is read once for
its whole group.

Shapes: T rows, B lanes, R query tokens a lane, Hq query heads, Hk key heads, G = Hq / Hk, Dk and Dv head widths, L keys
after padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from specproxy.kernels.explicit import explicit_attention
from specproxy.kernels.paged import KVBuffers

QUERY_ROWS = 4


class Scoring(NamedTuple):
    """How a layer scores keys: ``scale`` times the product. ``window``: a row sees that many keys, itself included.
    ``softcap``: scores become cap * tanh(score / cap). ``sinks`` [Hq]: one extra score per head that takes probability
    and gives nothing."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


class Attention(Protocol):
    """What a model asks for: where the rows' keys and values go, and attention over what is there.

    ``slots`` [T]: where the step's rows are stored.
    """

    slots: Tensor

    def attend(self, kv: KVBuffers, layer: int, q: Tensor, scoring: Scoring) -> Tensor:
        """Attention of all rows: q [T, Hq, Dk] -> [T, Hq * Dv]."""
        ...


@dataclass
class Span:
    """Rows of one sequence in a step.

    Rows ``start .. start + count`` hold positions from ``context`` on; ``context`` tokens are in the cache before them.
    ``table``: the sequence's pages. ``first``: keys before this one are not seen. ``words``: ancestor words of a tree
    (bit j = tree node j is an ancestor or the row itself), ``None`` for causal order; ``before``: nodes of the tree
    that stand in the cache already, behind the context and in front of the rows.

    ``rows``: the step's rows where they do not stand side by side. ``tail``: a position, and the slots of the keys from
    there on, where they are not the table's.
    """

    start: int
    count: int
    context: int
    table: Sequence[int]
    words: Sequence[int] | None = None
    before: int = 0
    first: int = 0
    rows: Sequence[int] | None = None
    tail: tuple[int, Sequence[int]] | None = None

    @property
    def end(self) -> int:
        """Tokens of the sequence up to and including the span."""
        return self.context + self.before + self.count


@dataclass
class Batch:
    """Spans that go through one call, one lane each.

    ``tokens``: query tokens of every lane (R); ``keys``: L. ``first_slot``, ``stride``: see KVBuffers.read.
    ``gathered`` [B, L]: slots to copy keys from where no view has them.
    ``take`` [B * R]: rows of the step in lane order, ``None`` where that is their order anyway. ``visible`` [B, R, L]:
    who sees what, ``None`` where everybody sees everything.
    """

    lanes: int
    tokens: int
    keys: int
    first_slot: int
    stride: int
    gathered: Tensor | None
    take: Tensor | None
    visible: Tensor | None
    dtype: torch.dtype
    exact: bool
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def mask(self, group: int, window: int | None) -> Tensor | None:
        """Additive mask [B, 1, R * G, L], its rows padded to whole tiles."""
        if self.visible is None and window is None:
            return None
        key = (group, window)
        found = self._masks.get(key)
        if found is None:
            visible = self._windowed(window)
            rows = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device)
            rows.masked_fill_(~visible, float("-inf"))
            if group > 1:
                rows = rows.repeat_interleave(group, 1)
            missing = -rows.shape[1] % QUERY_ROWS if self.exact else 0
            if missing:
                rows = torch.cat([rows, rows[:, -1:].expand(-1, missing, -1)], 1)
            found = self._masks[key] = rows[:, None]
        return found

    def _windowed(self, window: int | None) -> Tensor:
        """``visible``, of which only the last ``window`` keys count."""
        device = "cpu" if self.visible is None else self.visible.device
        index = torch.arange(self.keys, device=device)
        visible = index.ge(0).expand(self.lanes, self.tokens, -1) if self.visible is None else self.visible
        if window is None:
            return visible
        last = visible.long().mul(index).amax(2, keepdim=True)
        return visible & (index > last - window)


@dataclass
class AttentionPlan:
    """All spans of a step, and the slots [T] their keys and values go to.

    ``back`` [T]: where each row of the step stands in the batches' outputs, one behind the other; ``None``: in place.
    """

    batches: list[Batch]
    slots: Tensor
    back: Tensor | None

    def attend(self, kv: KVBuffers, layer: int, q: Tensor, scoring: Scoring) -> Tensor:
        """See Attention.attend; rows of no span come out as some other row."""
        parts = [_attend_batch(batch, kv, layer, q, scoring) for batch in self.batches]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out if self.back is None else out.index_select(0, self.back)


def _attend_batch(
    batch: Batch,
    kv: KVBuffers,
    layer: int,
    q: Tensor,
    scoring: Scoring,
) -> Tensor:
    """[B * R, Hq * Dv] of one batch."""
    shape, lanes, tokens, heads = kv.shapes[layer], batch.lanes, batch.tokens, q.shape[1]
    group = heads // shape.heads
    rows = tokens * group
    if batch.take is not None:
        q = q.index_select(0, batch.take)
    folded = q.view(lanes, tokens, shape.heads, group, shape.k_dim).transpose(1, 2)
    folded = folded.reshape(lanes, shape.heads, rows, shape.k_dim)
    mask = batch.mask(group, scoring.window)
    missing = -rows % QUERY_ROWS if batch.exact else 0
    if missing:
        folded = F.pad(folded, (0, 0, 0, missing))
    if batch.gathered is None:
        keys, values = kv.read(layer, batch.first_slot, lanes, batch.stride, batch.keys)
    else:
        keys, values = kv.gather(layer, batch.gathered)
    if scoring.softcap is None and scoring.sinks is None:
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scoring.scale)
    else:
        out = explicit_attention(folded, keys, values, mask, scoring.scale, scoring.softcap, scoring.sinks, group)
    if missing:
        out = out[:, :, :rows]
    out = out.reshape(lanes, shape.heads, tokens, group, shape.v_dim).transpose(1, 2)
    return out.reshape(lanes * tokens, heads * shape.v_dim)
