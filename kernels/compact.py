"""KV of accepted tree nodes moves down to where a text without a tree would have it, in all layers at once.

Node i of a lane's draft has its KV at position root + 1 + i; the accepted node at depth d (0: the root's child) belongs
at root + 1 + d. Parents come before their children, so accepted nodes ascend and none lies below its depth: KV only moves
down, possibly onto a place that another accepted node leaves. One program takes a lane's whole path in one plane, and
reads all of it before it writes.

Shapes: B lanes, N nodes of a draft at most, P pages of a lane, Q planes (of all layers; see ``paged.py``), D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specproxy.kernels.launching import early, kernels_run, let_next_start, wait_for_input
from specproxy.kernels.paged import KVBuffers

_WORDS = {1: tl.int8, 2: tl.int16, 4: tl.int32}
"""What numbers of so many bytes are copied as."""


class Planes:
    """All planes of ``kv`` for kernels that go through every layer: ``addresses`` [Q] int64 of their first number and
    ``widths`` [Q] int32, on its device. Made outside of any graph: it copies from the host."""

    def __init__(self, kv: KVBuffers) -> None:
        self.kv = kv
        addresses: list[int] = []
        widths: list[int] = []
        for shape, buffer in zip(kv.shapes, kv.layers, strict=True):
            step = buffer.stride(0) * buffer.element_size()
            addresses += [buffer.data_ptr() + step * plane for plane in range(2 * shape.heads)]
            widths += [shape.depth] * (2 * shape.heads)
        device = kv.layers[0].device
        self.addresses = torch.tensor(addresses, dtype=torch.int64, device=device)
        self.widths = torch.tensor(widths, dtype=torch.int32, device=device)


def compact_reference(kv: KVBuffers, tables: Tensor, root: Tensor, accepted: Tensor, count: Tensor) -> None:
    """The contract by ``copy_slots``, which reads before it writes; it waits for the device."""
    size = kv.page_size
    source: list[int] = []
    target: list[int] = []
    lanes = zip(tables.tolist(), root.tolist(), accepted.tolist(), count.tolist(), strict=True)
    for table, last, nodes, length in lanes:
        for depth, node in enumerate(nodes[:length]):
            for slots, position in ((source, last + 1 + node), (target, last + 1 + depth)):
                slots.append(table[position // size] * size + position % size)
    if source:
        kv.copy_slots(source, target)


@triton.jit
def _slot(tables, lane, position, moved, P, PAGE: tl.constexpr):
    """Slots of a lane's positions."""
    page = tl.load(tables + lane * P + position // PAGE, mask=moved, other=0).to(tl.int64)
    return page * PAGE + position % PAGE


@triton.jit
def _compact_kernel(
    addresses,
    widths,
    tables,
    root,
    accepted,
    count,
    N,
    P,
    PAGE: tl.constexpr,
    WORD: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    let_next_start(EARLY)
    wait_for_input(EARLY)
    lane, plane = tl.program_id(0).to(tl.int64), tl.program_id(1)
    depth = tl.arange(0, NODES)
    node = tl.load(accepted + lane * N + depth, mask=depth < N, other=-1)
    moved = (depth < N) & (depth < tl.load(count + lane)) & (node != depth)
    if tl.max(moved.to(tl.int32), 0) == 0:
        return
    first = tl.load(root + lane) + 1
    source, target = _slot(tables, lane, first + node, moved, P, PAGE), _slot(tables, lane, first + depth, moved, P, PAGE)
    width = tl.load(widths + plane)
    start = tl.load(addresses + plane).to(tl.pointer_type(WORD))
    at = tl.arange(0, BLOCK)
    inside = moved[:, None] & (at < width)[None, :]
    rows = tl.load(start + source[:, None] * width + at[None, :], mask=inside, other=0)
    # Other threads of this program write where these were read.
    tl.debug_barrier()
    tl.store(start + target[:, None] * width + at[None, :], rows, mask=inside)


def compact(planes: Planes, tables: Tensor, root: Tensor, accepted: Tensor, count: Tensor) -> None:
    """KV of each lane's accepted nodes moves from position root + 1 + node to root + 1 + depth, in every layer.

    tables [B, P] int32: pages of each lane, disjoint from there on; root [B]: position of its last committed token;
    accepted [B, N], count [B] as ``tree_walk`` gives them; int64, all contiguous. One launch, and nothing to move for a
    chain. Raises ValueError where shapes or types differ from these.
    """
    lanes, nodes = accepted.shape
    for name, x, shape in (("root", root, (lanes,)), ("accepted", accepted, (lanes, nodes)), ("count", count, (lanes,))):
        if x.shape != shape or x.dtype != torch.int64 or not x.is_contiguous():
            raise ValueError(f"compact: {name} {list(x.shape)} {x.dtype}; expected {list(shape)} int64, contiguous")
    if tables.dim() != 2 or len(tables) != lanes or tables.dtype != torch.int32 or not tables.is_contiguous():
        raise ValueError(
            f"compact: tables {list(tables.shape)} {tables.dtype}; expected [{lanes}, pages] int32, contiguous"
        )
    kv = planes.kv
    if not kernels_run(accepted):
        compact_reference(kv, tables, root, accepted, count)
    elif lanes and nodes:
        _compact_kernel[(lanes, len(planes.addresses))](
            planes.addresses,
            planes.widths,
            tables,
            root,
            accepted,
            count,
            nodes,
            tables.shape[1],
            PAGE=kv.page_size,
            WORD=_WORDS[kv.dtype.itemsize],
            NODES=triton.next_power_of_2(nodes),
            BLOCK=triton.next_power_of_2(max(shape.depth for shape in kv.shapes)),
            num_warps=4,
            **early(accepted),
        )
