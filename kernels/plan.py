"""Which rows go through which call of attention: the plan of a step, made once for all layers.

See ``attention.py`` for what makes a row's result independent of the others, and for the letters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from specproxy.kernels import paged
from specproxy.kernels.attention import Attention, AttentionPlan, Batch, Scoring, Span
from specproxy.kernels.lists import RowLists, list_rows
from specproxy.kernels.paged import KVBuffers

MOST_GROUP = 16
"""Query heads that may share a key head where a caller does not say how many do."""


@dataclass
class StepPlan:
    """``spans`` of a step, in the form that whoever computes attention asks for first: calls of torch's kernel, or
    lists of keys for code of our own. ``exact``: as bitwise equality needs it."""

    spans: Sequence[Span]
    slots: Tensor
    kv: KVBuffers
    exact: bool

    @cached_property
    def calls(self) -> AttentionPlan:
        """For torch."""
        return _plan_calls(self.spans, self.slots, self.kv, self.exact)

    @cached_property
    def lists(self) -> RowLists:
        """For code that goes row by row."""
        return list_rows(self.spans, self.slots.shape[0], self.kv.page_size)

    def attend(self, kv: KVBuffers, layer: int, q: Tensor, scoring: Scoring) -> Tensor:
        """See Attention.attend; rows of no span come out as some other row."""
        return self.calls.attend(kv, layer, q, scoring)


def plan_attention(
    spans: Sequence[Span], slots: Tensor, kv: KVBuffers, *, exact: bool = True, group: int = MOST_GROUP
) -> Attention:
    """The plan of ``spans``, made once for all layers. ``exact=False`` drops what bitwise equality needs (drafts),
    where that gains anything. ``group``: query heads that share a key head, at most."""
    if not slots.is_cuda:
        return StepPlan(spans, slots, kv, exact)
    from specproxy.kernels.ragged_attention import plan_ragged

    return plan_ragged(spans, slots, kv, group)


def _plan_calls(spans: Sequence[Span], slots: Tensor, kv: KVBuffers, exact: bool) -> AttentionPlan:
    rows = slots.shape[0]
    if exact:
        spans = [piece for span in spans for path in paths(span, kv.page_size) for piece in pieces(path)]
    if len(spans) == 1 and spans[0].count == rows and spans[0].rows is None:
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


def paths(span: Span, page_size: int) -> list[Span]:
    """A tree as chains: each key stands where it would stand if its path were the whole draft, so that a row's keys are
    summed in the order in which they would be without the tree. The first path goes from the root down its first
    children; each further one begins at a node that no path has yet. Spans in causal order stay as they are."""
    if span.words is None:
        return [span]
    ancestors = [[j for j in range(i + 1) if word >> j & 1] for i, word in enumerate(span.words)]
    taken = [False] * span.count
    found = []
    for top in range(span.count):
        if taken[top]:
            continue
        nodes = [top]
        for i in range(top + 1, span.count):
            if ancestors[i][:-1] == ancestors[nodes[-1]] and not taken[i]:
                nodes.append(i)
        for i in nodes:
            taken[i] = True
        whole, table = ancestors[nodes[-1]], span.table
        at = [span.context + i for i in whole]
        slots = [table[p // page_size] * page_size + p % page_size for p in at]
        found.append(
            Span(
                span.start + top,
                len(nodes),
                span.context + len(whole) - len(nodes),
                table,
                rows=None if nodes == list(range(top, top + len(nodes))) else [span.start + i for i in nodes],
                tail=None if whole == list(range(len(whole))) else (span.context, slots),
            )
        )
    return found


def pieces(span: Span) -> list[Span]:
    """A span in causal order, cut where its positions enter another key block."""
    block = paged.KEY_BLOCK
    if span.context // block == (span.end - 1) // block:
        return [span]
    cuts = [span.context, *range(span.context // block * block + block, span.end, block), span.end]
    return [
        replace(
            span,
            start=span.start + first - span.context,
            count=last - first,
            context=first,
            rows=None if span.rows is None else span.rows[first - span.context : last - span.context],
        )
        for first, last in itertools.pairwise(cuts)
    ]


def _padded_keys(span: Span, kv: KVBuffers, exact: bool) -> int:
    unit = paged.KEY_BLOCK if exact else kv.page_size
    return -(-span.end // unit) * unit


def _pages(span: Span, kv: KVBuffers) -> list[int]:
    return list(span.table[: -(-span.end // kv.page_size)])


def _contiguous(span: Span, kv: KVBuffers) -> bool:
    """Whether the keys of a span stand one behind the other."""
    return span.tail is None and all(b - a == 1 for a, b in itertools.pairwise(_pages(span, kv)))


def _groups(spans: Sequence[Span], kv: KVBuffers, exact: bool) -> list[list[Span]]:
    """Spans that share a call: read equally far (exact) or not (drafts); neighbours in memory where possible."""
    together: dict[tuple[int, bool], list[Span]] = {}
    for span in spans:
        contiguous = _contiguous(span, kv)
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
    contiguous = all(_contiguous(span, kv) for span in group)
    if contiguous:
        firsts = [table[0] for table in tables]
        stride = math.gcd(*(b - a for a, b in itertools.pairwise(firsts))) or 1
        lanes = [(first - firsts[0]) // stride for first in firsts]
    else:
        gathered = _gathered(group, tables, keys, kv, device)
    num_lanes = lanes[-1] + 1
    if take is not None:
        take += [-1] * (num_lanes * tokens)
        for span, lane in zip(group, lanes, strict=True):
            rows = range(span.start, span.start + span.count) if span.rows is None else span.rows
            take[lane * tokens : lane * tokens + span.count] = rows
    lone = contiguous and len(group) == 1 and tokens == 1 and not exact
    if lone and not group[0].first and group[0].words is None:
        return Batch(1, 1, group[0].end, tables[0][0] * size, size, None, None, None, kv.dtype, exact)
    limits = [[0] * tokens for _ in range(num_lanes)]
    for span, lane in zip(group, lanes, strict=True):
        limits[lane] = [*range(span.context, span.context + span.count), *[span.end - 1] * (tokens - span.count)]
    index = torch.arange(keys, device=device)
    visible = index <= torch.tensor(limits, device=device)[:, :, None]
    for span, lane in zip(group, lanes, strict=True):
        if span.words is not None:
            visible[lane, : span.count] = _tree(span, index)
        if span.first:
            visible[lane] &= index >= span.first
    return Batch(num_lanes, tokens, keys, tables[0][0] * size, stride * size, gathered, None, visible, kv.dtype, exact)


def _gathered(
    group: Sequence[Span], tables: Sequence[list[int]], keys: int, kv: KVBuffers, device: torch.device
) -> Tensor:
    """Slots [B, L] of the group's keys."""
    rows = [[*table, *[0] * (keys // kv.page_size - len(table))] for table in tables]
    slots = kv.slots(torch.tensor(rows, device=device))
    for lane, span in enumerate(group):
        if span.tail is not None:
            position, tail = span.tail
            tail = tail[: max(0, keys - position)]
            slots[lane, position : position + len(tail)] = torch.tensor(tail, device=device)
    return slots


def _tree(span: Span, index: Tensor) -> Tensor:
    """Who sees what [count, L] in a tree: the context, and ancestors."""
    visible = (index < span.context).repeat(span.count, 1)
    words = torch.tensor([_signed(w) for w in span.words or ()], device=index.device)[:, None]
    nodes = torch.arange(span.before + span.count, device=index.device)
    visible[:, span.context : span.end] = (words >> nodes) & 1 == 1
    return visible


def _signed(word: int) -> int:
    """A 64-bit word as torch's signed int64."""
    return word - (1 << 64) if word >> 63 else word
