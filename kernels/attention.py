"""Ragged paged attention: many sequences, one flat list of rows, keys in pages.

Contract. Row t of span s attends to every key of its sequence before the span, and inside the span to itself and its
ancestors: causal order for chains and prefill chunks, 64-bit ancestor words for trees. A row's result is bitwise
independent of the other rows, of where it stands, and of how far the keys are padded, provided that

* keys are padded to a multiple of ``KEY_BLOCK``: the CPU flash kernel reduces in key blocks of that size, so a shorter
  last block would be summed in another order (padded to 64 it looks invariant until the length crosses a boundary);
* query rows come in multiples of ``QUERY_ROWS``: the CPU kernel cuts them into tiles of 32, and a tile of one or two
  rows takes another code path (33 rows have such a tail);
* masked slots hold finite numbers: a masked NaN still reaches the output as 0 x NaN. ``KVBuffers.write`` sees to it.

It does not know whether this holds on the machine at hand; the engine's self-test measures that.

Grouped-query heads are folded into rows (token-major), so one key head is read once for its whole group.

Shapes: T rows, S sequences, Hq query heads, Hk key heads, G = Hq / Hk, Dk and Dv head widths, L keys after padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

KEY_BLOCK = 512
QUERY_ROWS = 8


@dataclass(frozen=True)
class LayerShape:
    """KV of one layer: heads and widths of keys and values."""

    heads: int
    k_dim: int
    v_dim: int

    @property
    def width(self) -> int:
        """Numbers stored per token: all keys, then all values."""
        return self.heads * (self.k_dim + self.v_dim)


class KVBuffers:
    """Paged keys and values of one model: per layer one tensor [slots, width], keys first.

    Slot = page * page_size + offset. Page 0 is never written and stays zero (padding reads it), page 1 takes the
    writes of padding rows. ``KEY_BLOCK`` spare slots at the end let the last page be read with its padding.
    """

    RESERVED_PAGES = 2
    TRASH_SLOT_PAGE = 1

    def __init__(
        self, shapes: Sequence[LayerShape], num_pages: int, page_size: int, dtype: torch.dtype, device: str
    ) -> None:
        if KEY_BLOCK % page_size:
            raise ValueError(f"page_size {page_size} must divide {KEY_BLOCK}")
        self.shapes = list(shapes)
        self.page_size = page_size
        self.num_pages = num_pages
        slots = num_pages * page_size + KEY_BLOCK
        self.layers = [torch.zeros(slots, s.width, dtype=dtype, device=device) for s in shapes]
        self._views: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    @property
    def trash_slot(self) -> int:
        """Where padding rows write."""
        return self.TRASH_SLOT_PAGE * self.page_size

    def write(self, layer: int, slots: Tensor, rows: Tensor) -> None:
        """Store rows [T, width] (keys, then values) at ``slots`` [T]; what is not finite becomes finite."""
        self.layers[layer].index_copy_(0, slots, torch.nan_to_num(rows))

    def read(self, layer: int, span: SpanPlan) -> tuple[Tensor, Tensor]:
        """Keys [1, Hk, L, Dk] and values [1, Hk, L, Dv] of one sequence; a view where its pages are contiguous."""
        if span.first_slot is None:
            pages = self.layers[layer][: self.num_pages * self.page_size].view(self.num_pages, -1)
            return self._split(layer, pages.index_select(0, span.pages).view(-1), 0, span.num_keys)
        key = (layer, span.first_slot, span.num_keys)
        found = self._views.get(key)
        if found is None:
            if len(self._views) > 4096:
                self._views.clear()
            found = self._views[key] = self._split(layer, self.layers[layer], span.first_slot, span.num_keys)
        return found

    def _split(self, layer: int, buffer: Tensor, first_slot: int, keys: int) -> tuple[Tensor, Tensor]:
        shape = self.shapes[layer]
        start = first_slot * shape.width
        return (
            buffer.as_strided((1, shape.heads, keys, shape.k_dim), (0, shape.k_dim, shape.width, 1), start),
            buffer.as_strided(
                (1, shape.heads, keys, shape.v_dim),
                (0, shape.v_dim, shape.width, 1),
                start + shape.heads * shape.k_dim,
            ),
        )

    def zero_page(self, page: int) -> None:
        """Clear one page in every layer."""
        start = page * self.page_size
        for buffer in self.layers:
            buffer[start : start + self.page_size].zero_()

    def copy_slots(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy rows between slots in every layer (an accepted tree path moves down)."""
        src, dst = torch.tensor(source), torch.tensor(target)
        for buffer in self.layers:
            buffer.index_copy_(0, dst.to(buffer.device), buffer.index_select(0, src.to(buffer.device)))

    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(b.numel() * b.element_size() for b in self.layers)


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


@dataclass
class SpanPlan:
    """A span made ready for every layer: where its keys are, and who sees what."""

    start: int
    count: int
    num_keys: int
    first_slot: int | None
    pages: Tensor
    visible: Tensor
    dtype: torch.dtype
    exact: bool
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def mask(self, group: int, window: int | None) -> Tensor:
        """Additive mask [rows, L]: rows are tokens x ``group`` heads, padded to exact tiles."""
        key = (group, window)
        found = self._masks.get(key)
        if found is None:
            visible = self.visible
            if window is not None:
                last = visible.long().mul(torch.arange(self.num_keys, device=visible.device)).amax(1, keepdim=True)
                visible = visible & (torch.arange(self.num_keys, device=visible.device) > last - window)
            rows = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device)
            rows = rows.masked_fill_(~visible, float("-inf"))
            if group > 1:
                rows = rows.repeat_interleave(group, 0)
            missing = -rows.shape[0] % QUERY_ROWS if self.exact else 0
            if missing:
                rows = torch.cat([rows, rows[-1:].expand(missing, -1)])
            found = self._masks[key] = rows
        return found


@dataclass
class AttentionPlan:
    """All spans of a step, and the slots [T] their keys and values go to. ``num_rows`` counts padding rows."""

    spans: list[SpanPlan]
    slots: Tensor
    num_rows: int


def plan_attention(
    spans: Sequence[Span],
    slots: Tensor,
    *,
    page_size: int,
    dtype: torch.dtype,
    exact: bool = True,
) -> AttentionPlan:
    """Prepare ``spans`` once for all layers. ``exact=False`` drops the padding that bitwise equality needs (drafts)."""
    device = slots.device
    plans = []
    for span in spans:
        end = span.context + span.count
        keys = -(-end // KEY_BLOCK) * KEY_BLOCK if exact else -(-end // page_size) * page_size
        table = list(span.table[: -(-end // page_size)])
        contiguous = all(b - a == 1 for a, b in itertools.pairwise(table))
        index = torch.arange(keys, device=device)
        if span.words is None:
            visible = index <= torch.arange(span.context, end, device=device)[:, None]
        else:
            visible = (index < span.context).repeat(span.count, 1)
            words = torch.tensor([_signed(w) for w in span.words], device=device)[:, None]
            visible[:, span.context : end] = (words >> torch.arange(span.count, device=device)) & 1 == 1
        pages = table + [0] * (keys // page_size - len(table))
        plans.append(
            SpanPlan(
                start=span.start,
                count=span.count,
                num_keys=keys,
                first_slot=table[0] * page_size if contiguous else None,
                pages=torch.tensor([] if contiguous else pages, dtype=torch.long, device=device),
                visible=visible,
                dtype=dtype,
                exact=exact,
            )
        )
    return AttentionPlan(plans, slots, slots.shape[0])


def _signed(word: int) -> int:
    """A 64-bit word as torch's signed int64."""
    return word - (1 << 64) if word >> 63 else word


def attend(
    plan: AttentionPlan,
    kv: KVBuffers,
    layer: int,
    q: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of all rows: q [T, Hq, Dk] -> [T, Hq * Dv]; padding rows come out as zeros.

    ``window``: a row sees that many keys, itself included. ``softcap``: scores become cap * tanh(score / cap).
    ``sinks`` [Hq]: one extra score per head that takes probability and gives nothing.
    """
    shape = kv.shapes[layer]
    if len(plan.spans) == 1 and plan.spans[0].count == plan.num_rows:
        return _attend_span(plan.spans[0], kv, layer, q, scale, window, softcap, sinks)
    out = q.new_zeros(plan.num_rows, q.shape[1] * shape.v_dim)
    for span in plan.spans:
        rows = slice(span.start, span.start + span.count)
        out[rows] = _attend_span(span, kv, layer, q[rows], scale, window, softcap, sinks)
    return out


def _attend_span(
    span: SpanPlan,
    kv: KVBuffers,
    layer: int,
    q: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    shape = kv.shapes[layer]
    count, heads = q.shape[0], q.shape[1]
    group = heads // shape.heads
    rows = count * group
    folded = q.view(count, shape.heads, group, shape.k_dim).transpose(0, 1).reshape(1, shape.heads, rows, shape.k_dim)
    mask = span.mask(group, window)
    if mask.shape[0] != rows:
        folded = F.pad(folded, (0, 0, 0, mask.shape[0] - rows))
    keys, values = kv.read(layer, span)
    if softcap is None and sinks is None:
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
    else:
        out = _explicit(folded, keys, values, mask, scale, softcap, sinks, group)
    out = out[0, :, :rows].view(shape.heads, count, group, shape.v_dim)
    return out.transpose(0, 1).reshape(count, heads * shape.v_dim)


def _explicit(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    group: int,
) -> Tensor:
    """What SDPA cannot express, spelled out; softmax in float32."""
    scores = torch.matmul(q, keys.transpose(2, 3)).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask.float()
    if sinks is not None:
        per_row = sinks.float().view(keys.shape[1], group).repeat(1, -(-q.shape[2] // group))[:, : q.shape[2]]
        scores = torch.cat([scores, per_row[None, :, :, None]], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : keys.shape[2]]
    return torch.matmul(weights.to(values.dtype), values)
