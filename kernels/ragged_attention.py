"""Attention of ragged rows on a GPU: prompt chunks, decode rows, chains and trees in two launches, bitwise by row.

Contract: that of ``attention.py``. What makes a row's bits its own:

* one tile shape. Rows of a block, times the query heads that share a key head, fill a tile of TILE_ROWS lines, whether
  there is one row or sixteen; a key tile is one page, aligned to absolute position;
* the context is cut into splits at absolute positions: of FINE keys up to WIDE_FROM, of WIDE beyond, so that a short
  context still gives work to the whole card and a long one does not drown in partial sums. Each split is one program;
  a second launch combines them, for each row those that the row sees, in their order;
* a tile of which a row sees nothing leaves the row's sums as they are;
* a tree's rows read the splits in which their paths leave the table's order through programs of their own, by slot, so
  that each key stands in the lane of its position on the path, as in a chain.

Shapes: T rows, Hq query heads, Hk key heads, G = Hq / Hk, Dk and Dv head widths, NB blocks, S splits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from specproxy.kernels.attention import Scoring, Span
from specproxy.kernels.launching import Scratch, early, kernels_run
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.ragged_kernels import combine_kernel, count_splits, ragged_kernel
from specproxy.kernels.ragged_rows import TAIL, TILE_ROWS, RaggedRows, RowShape, count_blocks

LEAST_PAGE = 16
"""The narrowest tile that the card's matrix units take."""

LEAST_REACH = 1024
"""Keys that a step which is not captured is laid out for at least."""


def plan_ragged(spans: Sequence[Span], slots: Tensor, kv: KVBuffers, group: int) -> RaggedAttention:
    """Attention of a step that is not captured. ``slots`` [T] on the device; ``group``: query heads of a key head at
    most.

    It is laid out for a power of two of keys: a kernel is compiled for each number of splits and scratch memory is kept
    for each, so a prompt that grew by chunks would else compile and allocate anew with every chunk.
    """
    tables = {id(span.table) for span in spans}
    blocks = count_blocks([span.count for span in spans], group)
    end = max((span.end for span in spans), default=1)
    reach = max(LEAST_REACH, 1 << (end - 1).bit_length())
    shape = RowShape(slots.shape[0], max(1, blocks), max(1, len(tables)), reach // kv.page_size)
    host = RaggedRows.allocate(shape, "cpu", pinned=slots.is_cuda)
    host.fill(spans, (), 0, kv.page_size, group)
    rows = RaggedRows(shape, host.buffer.to(slots.device, non_blocking=True))
    plan = RaggedAttention(rows, reach, trees=any(span.words is not None for span in spans), group=group)
    plan.slots = slots
    return plan


def ragged_reference(
    rows: RaggedRows,
    kv: KVBuffers,
    layer: int,
    q: Tensor,
    scoring: Scoring,
) -> Tensor:
    """The contract in torch, all rows at once in float32 or wider: q [T, Hq, Dk] -> [T, Hq * Dv]."""
    scale, window, softcap, sinks = scoring
    shape, (count, heads, _) = kv.shapes[layer], q.shape
    group, wide = heads // shape.heads, torch.promote_types(q.dtype, torch.float32)
    last = rows.positions[:, None].long()
    first = rows.first[:, None].long()
    if window is not None:
        first = torch.maximum(first, last - window + 1)
    at = torch.arange(max(1, int(last.max()) + 1), device=q.device)
    seen = (at <= last) & (at >= first)
    slots = (rows.tables.long()[:, at // kv.page_size] * kv.page_size + at % kv.page_size)[rows.lanes.long()]
    behind = at - rows.tail_from[:, None]
    tails = rows.tails.long().gather(1, behind.clamp(0, TAIL - 1))
    keys, values = kv.gather(layer, torch.where(seen, torch.where(behind >= 0, tails, slots), 0))
    queries = q.to(wide).view(count, shape.heads, group, -1)
    scores = torch.einsum("tkgd,tkld->tkgl", queries, keys.to(wide)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    if sinks is not None:
        column = sinks.to(wide).view(1, shape.heads, group, 1).expand(count, -1, -1, 1)
        scores = torch.cat([scores, column], 3)
    weights = torch.softmax(scores, -1)[..., : len(at)].nan_to_num(0.0)
    return torch.einsum("tkgl,tkld->tkgd", weights, values.to(wide)).to(q.dtype).flatten(1)


class RaggedAttention:
    """``Attention`` (see ``attention.py``) over ``rows``. ``max_keys``: no row's position reaches it."""

    def __init__(self, rows: RaggedRows, max_keys: int, *, trees: bool = True, group: int = TILE_ROWS) -> None:
        """``trees``: whether rows may have tails; without, no programs stand by for them. ``group``: that with which
        ``rows`` was filled."""
        self.rows = rows
        self._group = group
        self.slots = rows.slots.long()
        self._splits = count_splits(max_keys)
        self._trees = trees

    def attend(self, kv: KVBuffers, layer: int, q: Tensor, scoring: Scoring) -> Tensor:
        """See Attention.attend."""
        rows = self.rows
        if not kernels_run(q):
            return ragged_reference(rows, kv, layer, q, scoring)
        shape, (count, heads, _) = kv.shapes[layer], q.shape
        self._check(kv, heads, shape.heads, q)
        cells = count * heads * self._splits
        partials = Scratch.of(q.device).take("attention values", cells * triton.next_power_of_2(shape.v_dim))
        sums = Scratch.of(q.device).take("attention sums", cells * 2)
        self._read_splits(kv, layer, q, scoring, (partials, sums))
        out = torch.empty(count, heads * shape.v_dim, dtype=q.dtype, device=q.device)
        combine_kernel[(count, heads)](
            out,
            rows.positions,
            rows.first,
            q if scoring.sinks is None else scoring.sinks,
            partials,
            sums,
            scoring.window or 0,
            self._splits,
            HEADS=heads,
            V_DIM=shape.v_dim,
            V_BLOCK=triton.next_power_of_2(shape.v_dim),
            WINDOW=scoring.window is not None,
            SINKS=scoring.sinks is not None,
            num_warps=1,
            **early(q),
        )
        return out

    def _read_splits(
        self, kv: KVBuffers, layer: int, q: Tensor, scoring: Scoring, scratch: tuple[Tensor, Tensor]
    ) -> None:
        """Weighted values, maxima and sums of every row's splits into ``scratch``."""
        rows, shape, buffer, (count, heads, _) = self.rows, kv.shapes[layer], kv.layers[layer], q.shape
        blocks = rows.shape.blocks
        ragged_kernel[(blocks + (count if self._trees else 0), shape.heads, self._splits)](
            q,
            buffer,
            rows.positions,
            rows.first,
            rows.lanes,
            rows.tables,
            rows.tail_from,
            rows.tails,
            rows.block_row,
            rows.block_count,
            *scratch,
            scoring.scale,
            scoring.softcap or 0.0,
            scoring.window or 0,
            buffer.stride(0),
            q.stride(0),
            blocks,
            rows.shape.pages,
            self._splits,
            HEADS=heads,
            KV_HEADS=shape.heads,
            K_DIM=shape.k_dim,
            V_DIM=shape.v_dim,
            DEPTH=shape.depth,
            K_BLOCK=triton.next_power_of_2(shape.k_dim),
            V_BLOCK=triton.next_power_of_2(shape.v_dim),
            PAGE=kv.page_size,
            LINES=TILE_ROWS,
            WINDOW=scoring.window is not None,
            CAP=scoring.softcap is not None,
            num_warps=4,
            num_stages=3,
            **early(q),
        )

    def _check(self, kv: KVBuffers, heads: int, kv_heads: int, q: Tensor) -> None:
        """Raises ValueError where the kernel would read what it was not laid out for."""
        if heads % kv_heads or heads // kv_heads > self._group:
            raise ValueError(
                f"ragged attention: {heads} query heads over {kv_heads} key heads, but blocks are cut for groups of at "
                f"most {self._group}; fill the rows with the largest group of any layer"
            )
        if kv.page_size < LEAST_PAGE or kv.page_size & (kv.page_size - 1):
            raise ValueError(
                f"ragged attention: page_size {kv.page_size}, expected a power of two from {LEAST_PAGE} on: a page is "
                "one tile of keys"
            )
        if q.dtype != kv.dtype or q.stride()[1:] != (q.shape[2], 1):
            raise ValueError(
                f"ragged attention: queries are {q.dtype} with strides {q.stride()}, expected {kv.dtype}, as the keys "
                "are, and a row's heads one behind the other"
            )
