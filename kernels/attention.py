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

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from specproxy.kernels import paged
from specproxy.kernels.paged import KVBuffers

QUERY_ROWS = 4


class Attention(Protocol):
    """What a model asks for: where the rows' keys and values go, and attention over what is there.

    ``slots`` [T]: where the step's rows are stored.
    """

    slots: Tensor

    def attend(
        self,
        kv: KVBuffers,
        layer: int,
        q: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attention of all rows: q [T, Hq, Dk] -> [T, Hq * Dv].

        ``window``: a row sees that many keys, itself included. ``softcap``: scores become cap * tanh(score / cap).
        ``sinks`` [Hq]: one extra score per head that takes probability and gives nothing.
        """
        ...


@dataclass
class Span:
    """Consecutive rows of one sequence in a step.

    Rows ``start .. start + count`` hold positions from ``context`` on; ``context`` tokens are in the cache before them.
    ``table``: the sequence's pages. ``words``: ancestor words of a tree (bit j = span row j is an ancestor or the row
    itself), ``None`` for causal order.
    """

    start: int
    count: int
    context: int
    table: Sequence[int]
    words: Sequence[int] | None = None

    @property
    def end(self) -> int:
        """Tokens of the sequence up to and including the span."""
        return self.context + self.count


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

    def attend(
        self,
        kv: KVBuffers,
        layer: int,
        q: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See Attention.attend; rows of no span come out as some other row."""
        parts = [_attend_batch(batch, kv, layer, q, scale, window, softcap, sinks) for batch in self.batches]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out if self.back is None else out.index_select(0, self.back)


def plan_attention(spans: Sequence[Span], slots: Tensor, kv: KVBuffers, *, exact: bool = True) -> AttentionPlan:
    """Prepare ``spans`` once for all layers. ``exact=False`` drops what bitwise equality needs (drafts)."""
    rows = slots.shape[0]
    if exact:
        spans = [piece for span in spans for piece in pieces(span)]
    if len(spans) == 1 and spans[0].count == rows:
        return AttentionPlan([_batch(spans, kv, exact, slots.device, None)], slots, None)
    batches, places, offset = [], [0] * rows, 0
    for group in _groups(spans, kv, exact):
        take: list[int] = []
        batch = _batch(group, kv, exact, slots.device, take)
        for lane_row, row in enumerate(take):
            if row >= 0:
                places[row] = offset + lane_row
        offset += len(take)
        batch.take = torch.tensor([max(0, row) for row in take], device=slots.device)
        batches.append(batch)
    return AttentionPlan(batches, slots, torch.tensor(places, device=slots.device))


def pieces(span: Span) -> list[Span]:
    """A span cut where its positions enter another key block; trees, whose rows see slots out of order, stay whole."""
    block = paged.KEY_BLOCK
    if span.words is not None or span.context // block == (span.end - 1) // block:
        return [span]
    cuts = [span.context, *range(span.context // block * block + block, span.end, block), span.end]
    return [
        Span(span.start + first - span.context, last - first, first, span.table)
        for first, last in itertools.pairwise(cuts)
    ]


def _padded_keys(span: Span, kv: KVBuffers, exact: bool) -> int:
    unit = paged.KEY_BLOCK if exact else kv.page_size
    return -(-span.end // unit) * unit


def _pages(span: Span, kv: KVBuffers) -> list[int]:
    return list(span.table[: -(-span.end // kv.page_size)])


def _groups(spans: Sequence[Span], kv: KVBuffers, exact: bool) -> list[list[Span]]:
    """Spans that share a call: read equally far (exact) or not (drafts); neighbours in memory where possible."""
    together: dict[tuple[int, bool], list[Span]] = {}
    for span in spans:
        contiguous = all(b - a == 1 for a, b in itertools.pairwise(_pages(span, kv)))
        together.setdefault((_padded_keys(span, kv, exact) if exact else 0, contiguous), []).append(span)
    groups: list[list[Span]] = []
    for (_, contiguous), group in together.items():
        if contiguous and not _fits(group, kv, exact):
            groups += [[span] for span in group]
        else:
            groups.append(sorted(group, key=lambda span: span.table[0]))
    return groups


def _fits(group: Sequence[Span], kv: KVBuffers, exact: bool) -> bool:
    """Whether contiguous spans make a view without too many unused lanes, inside the buffer."""
    firsts = sorted(span.table[0] for span in group)
    stride = math.gcd(*(b - a for a, b in itertools.pairwise(firsts))) or 1
    keys = max(_padded_keys(span, kv, exact) for span in group)
    return (firsts[-1] - firsts[0]) // stride + 1 <= 2 * len(group) and (
        firsts[-1] * kv.page_size + keys <= kv.num_slots
    )


def _batch(group: Sequence[Span], kv: KVBuffers, exact: bool, device: torch.device, take: list[int] | None) -> Batch:
    """The spans of ``group`` (sorted by first page) as one batch; ``take`` receives the step's row of each lane row."""
    size, tokens = kv.page_size, max(span.count for span in group)
    keys = max(_padded_keys(span, kv, exact) for span in group)
    tables = [_pages(span, kv) for span in group]
    gathered, stride, lanes = None, 1, list(range(len(group)))
    contiguous = all(b - a == 1 for table in tables for a, b in itertools.pairwise(table))
    if contiguous:
        firsts = [table[0] for table in tables]
        stride = math.gcd(*(b - a for a, b in itertools.pairwise(firsts))) or 1
        lanes = [(first - firsts[0]) // stride for first in firsts]
    else:
        rows = [[*table, *[0] * (keys // size - len(table))] for table in tables]
        gathered = kv.slots(torch.tensor(rows, device=device))
    num_lanes = lanes[-1] + 1
    if take is not None:
        take += [-1] * (num_lanes * tokens)
        for span, lane in zip(group, lanes, strict=True):
            take[lane * tokens : lane * tokens + span.count] = range(span.start, span.start + span.count)
    if contiguous and len(group) == 1 and tokens == 1 and not exact:
        return Batch(1, 1, group[0].end, tables[0][0] * size, size, None, None, None, kv.dtype, exact)
    limits = [[0] * tokens for _ in range(num_lanes)]
    for span, lane in zip(group, lanes, strict=True):
        limits[lane] = [*range(span.context, span.end), *[span.end - 1] * (tokens - span.count)]
    index = torch.arange(keys, device=device)
    visible = index <= torch.tensor(limits, device=device)[:, :, None]
    for span, lane in zip(group, lanes, strict=True):
        if span.words is not None:
            visible[lane, : span.count] = _tree(span, index)
    return Batch(num_lanes, tokens, keys, tables[0][0] * size, stride * size, gathered, None, visible, kv.dtype, exact)


def _tree(span: Span, index: Tensor) -> Tensor:
    """Who sees what [count, L] in a tree: everything before the span, and ancestors inside."""
    visible = (index < span.context).repeat(span.count, 1)
    words = torch.tensor([_signed(w) for w in span.words or ()], device=index.device)[:, None]
    visible[:, span.context : span.end] = (words >> torch.arange(span.count, device=index.device)) & 1 == 1
    return visible


def _signed(word: int) -> int:
    """A 64-bit word as torch's signed int64."""
    return word - (1 << 64) if word >> 63 else word


def _attend_batch(
    batch: Batch,
    kv: KVBuffers,
    layer: int,
    q: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """[B * R, Hq * Dv] of one batch."""
    shape, lanes, tokens, heads = kv.shapes[layer], batch.lanes, batch.tokens, q.shape[1]
    group = heads // shape.heads
    rows = tokens * group
    if batch.take is not None:
        q = q.index_select(0, batch.take)
    folded = q.view(lanes, tokens, shape.heads, group, shape.k_dim).transpose(1, 2)
    folded = folded.reshape(lanes, shape.heads, rows, shape.k_dim)
    mask = batch.mask(group, window)
    missing = -rows % QUERY_ROWS if batch.exact else 0
    if missing:
        folded = F.pad(folded, (0, 0, 0, missing))
    if batch.gathered is None:
        keys, values = kv.read(layer, batch.first_slot, lanes, batch.stride, batch.keys)
    else:
        keys, values = kv.gather(layer, batch.gathered)
    if softcap is None and sinks is None:
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
    else:
        out = _explicit(folded, keys, values, mask, scale, softcap, sinks, group)
    if missing:
        out = out[:, :, :rows]
    out = out.reshape(lanes, shape.heads, tokens, group, shape.v_dim).transpose(1, 2)
    return out.reshape(lanes * tokens, heads * shape.v_dim)


@dataclass
class RowAttention:
    """Attention with every row as a lane of its own: no plan, only tensors, so that a compiler can trace it.

    Nothing is shared between rows of one sequence, so it is for few rows; nothing is promised about bits.
    ``slots`` [T]. ``positions`` [T]: a row sees the keys up to its own. ``pages`` [T, P]: each row's pages.
    """

    slots: Tensor
    positions: Tensor
    pages: Tensor

    def attend(
        self,
        kv: KVBuffers,
        layer: int,
        q: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See Attention.attend."""
        shape, rows = kv.shapes[layer], q.shape[0]
        group = q.shape[1] // shape.heads
        index = torch.arange(self.pages.shape[1] * kv.page_size, device=q.device)
        hidden = index > self.positions[:, None]
        if window is not None:
            hidden = hidden | (index <= self.positions[:, None] - window)
        mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill(hidden, float("-inf"))
        mask = mask[:, None, None].expand(-1, 1, group, -1)
        keys, values = kv.gather(layer, kv.slots(self.pages))
        folded = q.reshape(rows, shape.heads, group, shape.k_dim)
        if softcap is None and sinks is None:
            out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
        else:
            out = _explicit(folded, keys, values, mask, scale, softcap, sinks, group)
        return out.reshape(rows, -1)


def _explicit(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    group: int,
) -> Tensor:
    """What SDPA cannot express, spelled out; softmax in float32."""
    scores = torch.matmul(q, keys.transpose(2, 3)).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask.float()
    if sinks is not None:
        per_row = sinks.float().view(keys.shape[1], group).repeat(1, -(-q.shape[2] // group))[:, : q.shape[2]]
        scores = torch.cat([scores, per_row[None, :, :, None].expand(q.shape[0], -1, -1, -1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : keys.shape[2]]
    return torch.matmul(weights.to(values.dtype), values)
