"""The kernels of a target's step on a GPU as parts to be measured (``roofline.py``); they import Triton.

Beside each product stands the library's, which promises nothing about bits: the fastest setting without that promise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from specproxy.bench.roofline import LIBRARY, MOST_COPIES, PAGE_SIZE, PART_ROWS, Part, Sizes, draws, product_parts
from specproxy.bench.timing import Work
from specproxy.kernels.compact import compact
from specproxy.kernels.draw import draw
from specproxy.kernels.layer_parts import Turn, add_norm, rotate_and_store
from specproxy.kernels.small_product import gated_product, gated_reference
from specproxy.kernels.tree_walk import tree_walk
from specproxy.models.device import DeviceLinear
from specproxy.sampling.on_device import pack_rows

LANES = 8
"""Sequences whose drafts are walked and compacted at once."""
NODES = 63
POSITION = 100


def device_makers(sizes: Sizes) -> list[Callable[[], Iterator[Part]]]:
    """Makers of every kernel's parts but attention's."""
    return [
        *(
            partial(product_parts, sizes, name, make, label)
            for name in sizes.products()
            for make, label in ((DeviceLinear, ""), (_library, LIBRARY))
        ),
        partial(gated_parts, sizes),
        partial(add_norm_parts, sizes),
        partial(rotate_parts, sizes),
        partial(draw_parts, sizes),
        partial(walk_parts, sizes),
        partial(compact_parts, sizes),
    ]


def _library(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, weight, bias)


def gated_parts(sizes: Sizes) -> Iterator[Part]:
    """silu(gate x) * (up x) in one launch, and in the library's three."""
    results, inputs = 2 * sizes.intermediate, sizes.hidden
    size = results * inputs * sizes.item
    weights = [sizes.random(results, inputs) for _ in range(sizes.copies(size))]
    for product, label in ((gated_product, ""), (gated_reference, LIBRARY)):
        for rows in PART_ROWS:
            x = sizes.random(rows, inputs)
            moved = size + rows * (inputs + sizes.intermediate) * sizes.item
            name = f"gate and up, gated, {results} x {inputs}{label}"
            yield Part(name, rows, moved, [partial(product, x, weight) for weight in weights])


def add_norm_parts(sizes: Sizes) -> Iterator[Part]:
    """Residual and RMSNorm."""
    weights = [sizes.random(sizes.hidden) for _ in range(MOST_COPIES)]
    for rows in PART_ROWS:
        x, delta = sizes.random(rows, sizes.hidden), sizes.random(rows, sizes.hidden)
        moved = (4 * rows + 1) * sizes.hidden * sizes.item
        works: list[Work] = [partial(add_norm, x, delta, weight, 1e-5) for weight in weights]
        yield Part(f"add_norm {sizes.hidden}", rows, moved, works)


def rotate_parts(sizes: Sizes) -> Iterator[Part]:
    """Rotary embedding and the write of keys and values."""
    kv, table = sizes.buffers(16, POSITION + max(PART_ROWS))
    factors = (POSITION + max(PART_ROWS), sizes.shape.k_dim)
    turn = Turn(sizes.random(*factors), sizes.random(*factors))
    for rows in PART_ROWS:
        positions = torch.arange(POSITION, POSITION + rows, device=sizes.device)
        slots = positions + table[0] * kv.page_size
        qkv = sizes.random(rows, sizes.qkv)
        moved = (2 * rows * sizes.qkv + 2 * rows * sizes.shape.k_dim) * sizes.item
        works: list[Work] = [
            partial(rotate_and_store, qkv, positions, slots, turn, kv, layer, sizes.heads, None)
            for layer in range(len(kv.layers))
        ]
        yield Part("rotate_and_store", rows, moved, works)


def draw_parts(sizes: Sizes) -> Iterator[Part]:
    """The perturbed argmax, without and with cut-offs."""
    for rows in PART_ROWS:
        size = rows * sizes.vocab * sizes.item
        logits = [sizes.random(rows, sizes.vocab) for _ in range(sizes.copies(size, 16))]
        for label, drawn in draws(sizes, rows).items():
            packed, cut = pack_rows(drawn, torch.device(sizes.device)), "top_p" in label
            works: list[Work] = [partial(draw, x, packed, cutoffs=cut) for x in logits]
            yield Part(f"{label}, {sizes.vocab} ids", rows, size, works)


def walk_parts(sizes: Sizes) -> Iterator[Part]:
    """Walks of chains that are accepted to their end: the longest there are."""
    tokens = torch.arange(NODES, device=sizes.device).expand(LANES, NODES).contiguous()
    parents = tokens - 1
    count = torch.full((LANES,), NODES, device=sizes.device)
    sampled = torch.arange(NODES + 1, device=sizes.device).expand(LANES, NODES + 1).contiguous()
    moved = 8 * (3 * tokens.numel() + sampled.numel() + 3 * LANES)
    works: list[Work] = [partial(tree_walk, tokens, parents, count, sampled)] * 16
    yield Part(f"tree_walk, {LANES} drafts of {NODES}", 1, moved, works)


def compact_parts(sizes: Sizes) -> Iterator[Part]:
    """Eight accepted nodes of each lane move down by one place, in all layers."""
    each = -(-(POSITION + NODES + 1) // PAGE_SIZE)
    kv, pages = sizes.buffers(sizes.layers, LANES * each * PAGE_SIZE)
    tables = torch.tensor(pages, dtype=torch.int32, device=sizes.device).view(LANES, each)
    root = torch.full((LANES,), POSITION, device=sizes.device)
    depth = 8
    accepted = torch.full((LANES, NODES), -1, device=sizes.device)
    accepted[:, :depth] = torch.arange(1, depth + 1, device=sizes.device)
    count = torch.full((LANES,), depth, device=sizes.device)
    moved = 2 * LANES * depth * sizes.layers * sizes.shape.width * sizes.item
    works: list[Work] = [partial(compact, kv, tables, root, accepted, count)] * 4
    yield Part(f"compact, {LANES} drafts, {depth} nodes each", 1, moved, works)
