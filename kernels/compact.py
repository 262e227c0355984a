"""Keys and values of an accepted tree path move together, without asking the host which path it was.

A draft's node i has its keys and values at position root + 1 + i. Of the accepted nodes, the one at depth d (0: the
root's child) belongs at root + 1 + d. Nodes come in ascending order and node >= depth, so a node is never written over
before it is read as long as smaller depths are not moved after larger ones; where node == depth nothing moves.

One program moves one lane's path in one plane of one layer: some depths at once, all read before any is written.

Shapes: B lanes, N nodes of a lane at most, P pages of a lane.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specproxy.kernels.launching import early, kernels_run, let_next_start, wait_for_input
from specproxy.kernels.paged import KVBuffers

DEPTHS = 8
"""Depths that are moved at once."""


def compact_reference(kv: KVBuffers, tables: Tensor, root: Tensor, accepted: Tensor, count: Tensor) -> None:
    """The contract in torch, by lists on the host."""
    source: list[int] = []
    target: list[int] = []
    lanes = zip(tables.tolist(), root.tolist(), accepted.tolist(), count.tolist(), strict=True)
    for table, start, nodes, moved in lanes:
        for depth, node in enumerate(nodes[:moved]):
            for slots, position in ((source, start + 1 + node), (target, start + 1 + depth)):
                slots.append(table[position // kv.page_size] * kv.page_size + position % kv.page_size)
    if source:
        kv.copy_slots(source, target)


@triton.jit
def _compact_kernel(
    layers,
    tables,
    root,
    accepted,
    count,
    table_stride,
    N,
    plane_stride,
    LAYERS: tl.constexpr,
    PAGE: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTHS: tl.constexpr,
    EARLY: tl.constexpr,
):
    let_next_start(EARLY)
    plane, layer, lane = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    base = layers[0]
    for i in tl.static_range(1, LAYERS):
        base = tl.where(layer == i, layers[i], base)
    base += plane.to(tl.int64) * plane_stride
    wait_for_input(EARLY)
    moved = tl.load(count + lane)
    first = tl.load(root + lane) + 1
    at = tl.arange(0, BLOCK)[None, :]
    for start in range(0, moved, DEPTHS):
        depth = start + tl.arange(0, DEPTHS)
        inside = depth < moved
        node = tl.load(accepted + lane * N + depth, mask=inside, other=0)
        inside = inside & (node != depth)
        source = _slot(tables + lane * table_stride, first + node, inside, PAGE)
        target = _slot(tables + lane * table_stride, first + depth, inside, PAGE)
        mask = inside[:, None] & (at < DEPTH)
        rows = tl.load(base + source[:, None] * DEPTH + at, mask=mask)
        tl.debug_barrier()
        tl.store(base + target[:, None] * DEPTH + at, rows, mask=mask)


@triton.jit
def _slot(table, position, inside, PAGE: tl.constexpr):
    """Slots of positions."""
    page = tl.load(table + position // PAGE, mask=inside, other=0)
    return page.to(tl.int64) * PAGE + position % PAGE


def compact(kv: KVBuffers, tables: Tensor, root: Tensor, accepted: Tensor, count: Tensor) -> None:
    """Move the accepted nodes of every lane in all layers and planes; nothing is waited for.

    tables [B, P] int32: pages of each lane; root [B] int64: position of its last committed token; accepted [B, N] int64
    and count [B] int64: as ``tree_walk`` gives them. Lanes do not share the pages behind their roots. One launch for
    each distinct shape of layer. Raises ValueError where shapes or types differ from these.
    """
    _check(tables, root, accepted, count)
    if not kernels_run(kv.layers[0]):
        compact_reference(kv, tables, root, accepted, count)
        return
    lanes, nodes = accepted.shape
    if not lanes or not nodes:
        return
    for shape in dict.fromkeys((s.heads, s.depth) for s in kv.shapes):
        layers = tuple(b for b, s in zip(kv.layers, kv.shapes, strict=True) if (s.heads, s.depth) == shape)
        heads, depth = shape
        _compact_kernel[(2 * heads, len(layers), lanes)](
            layers,
            tables,
            root,
            accepted,
            count,
            tables.stride(0),
            nodes,
            layers[0].stride(0),
            LAYERS=len(layers),
            PAGE=kv.page_size,
            DEPTH=depth,
            BLOCK=triton.next_power_of_2(depth),
            DEPTHS=DEPTHS,
            num_warps=4,
            **early(layers[0]),
        )


def _check(tables: Tensor, root: Tensor, accepted: Tensor, count: Tensor) -> None:
    lanes, nodes = accepted.shape
    expected = {
        "tables": (tables, [lanes, tables.shape[-1]], torch.int32),
        "root": (root, [lanes], torch.int64),
        "accepted": (accepted, [lanes, nodes], torch.int64),
        "count": (count, [lanes], torch.int64),
    }
    for name, (tensor, shape, dtype) in expected.items():
        if list(tensor.shape) != shape or tensor.dtype != dtype or tensor.stride(-1) != 1:
            raise ValueError(
                f"compact: {name} {list(tensor.shape)} {tensor.dtype}, strides {tensor.stride()}; expected {shape} "
                f"{dtype} whose rows are contiguous"
            )
