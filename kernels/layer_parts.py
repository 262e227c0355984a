"""The parts of a Llama layer between its products, each one launch.

``add_norm``: the residual stream takes up a block's output and is normed for the next one. ``rotate_and_store``:
optional norms of q and k per head, rotary embedding, and the write of keys and values to their pages. Rounding is that
of the layer loop in torch, operation by operation, so that both compute the same function within a last bit of a norm.
A row is computed by programs of its own: its bits cannot depend on the others.

Shapes: T rows, D hidden width, Hq query heads, Hk key heads, W head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from specproxy.kernels.launching import early, kernels_run, let_next_start, wait_for_input
from specproxy.kernels.paged import KVBuffers


class Normed(NamedTuple):
    """``stream`` [T, D]: the residual stream; ``normed`` [T, D]."""

    stream: Tensor
    normed: Tensor


def add_norm_reference(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Normed:
    """The contract in torch."""
    stream = x if delta is None else x + delta
    return Normed(stream, F.rms_norm(stream, (x.shape[1],), weight, eps))


@triton.jit
def _add_norm_kernel(
    x, delta, weight, stream, normed, eps, D, BLOCK: tl.constexpr, ADD: tl.constexpr, EARLY: tl.constexpr
):
    let_next_start(EARLY)
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < D
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    wait_for_input(EARLY)
    value = tl.load(x + row * D + at, mask=inside, other=0.0)
    if ADD:
        value = (value.to(tl.float32) + tl.load(delta + row * D + at, mask=inside, other=0.0).to(tl.float32)).to(
            stream.dtype.element_ty
        )
        tl.store(stream + row * D + at, value, mask=inside)
    value = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / D + eps)
    tl.store(normed + row * D + at, (value * scale * w).to(normed.dtype.element_ty), mask=inside)


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Normed:
    """x + delta [T, D] and its RMSNorm with ``weight`` [D], statistics in float32 (Zhang, Sennrich, 1910.07467)."""
    if not kernels_run(x):
        return add_norm_reference(x, delta, weight, eps)
    rows, width = x.shape
    stream = x if delta is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    _add_norm_kernel[(rows,)](
        x,
        x if delta is None else delta,
        weight,
        stream,
        normed,
        eps,
        width,
        BLOCK=block,
        ADD=delta is not None,
        num_warps=min(16, max(1, block // 512)),
        **early(x),
    )
    return Normed(stream, normed)


class HeadNorms(NamedTuple):
    """Norms of q and k per head (Qwen3): weights [W] each, ``eps``."""

    q: Tensor
    k: Tensor
    eps: float


class Turn(NamedTuple):
    """Rotary factors of all positions, [P, W]: cos, and sin whose first half is negated, in the model's dtype."""

    cos: Tensor
    sin: Tensor


def rotate_and_store_reference(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    turn: Turn,
    kv: KVBuffers,
    layer: int,
    heads: int,
    norms: HeadNorms | None,
) -> Tensor:
    """The contract in torch."""
    shape = kv.shapes[layer]
    rows, width, rotated = qkv.shape[0], shape.k_dim, heads + shape.heads
    both = qkv[:, : rotated * width].reshape(rows, rotated, width)
    if norms is not None:
        q, k = both.split([heads, shape.heads], 1)
        both = torch.cat([F.rms_norm(q, (width,), norms.q, norms.eps), F.rms_norm(k, (width,), norms.k, norms.eps)], 1)
    cos, sin = turn.cos.index_select(0, positions)[:, None], turn.sin.index_select(0, positions)[:, None]
    swapped = both.view(rows, rotated, 2, width // 2).flip(2).view(rows, rotated, width)
    both = both * cos + swapped * sin
    kv.write(layer, slots, torch.cat([both[:, heads:].flatten(1), qkv[:, rotated * width :]], 1))
    return both[:, :heads]


@triton.jit
def _rotate_and_store_kernel(
    qkv,
    positions,
    slots,
    cos,
    sin,
    q_norm,
    k_norm,
    q_out,
    kv,
    eps,
    plane,
    limit,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    EARLY: tl.constexpr,
):
    let_next_start(EARLY)
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    kind = q_out.dtype.element_ty
    at = tl.arange(0, BLOCK)
    line = (HEADS + KV_HEADS) * WIDTH + KV_HEADS * V_WIDTH
    slot = tl.load(slots + row)
    position = tl.load(positions + row)
    c = tl.load(cos + position * WIDTH + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    s = tl.load(sin + position * WIDTH + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    wait_for_input(EARLY)
    if head >= HEADS + KV_HEADS:
        inside = at < V_WIDTH
        number = head - HEADS - KV_HEADS
        start = (HEADS + KV_HEADS) * WIDTH + number * V_WIDTH
        value = tl.load(qkv + row * line + start + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(value != value, 0.0, tl.minimum(tl.maximum(value, -limit), limit))
        tl.store(kv + (KV_HEADS + number) * plane + slot * DEPTH + at, value.to(kind), mask=inside)
    else:
        inside = at < WIDTH
        other = (at + WIDTH // 2) % WIDTH
        base = qkv + row * line + head * WIDTH
        value = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
        swapped = tl.load(base + other, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            weight = q_norm if head < HEADS else k_norm
            scale = tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
            value = (
                (value * scale * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)).to(kind).to(tl.float32)
            )
            swapped = swapped * scale * tl.load(weight + other, mask=inside, other=0.0).to(tl.float32)
            swapped = swapped.to(kind).to(tl.float32)
        turned = (value * c).to(kind).to(tl.float32) + (swapped * s).to(kind).to(tl.float32)
        if head < HEADS:
            tl.store(q_out + (row * HEADS + head) * WIDTH + at, turned.to(kind), mask=inside)
        else:
            turned = turned.to(kind).to(tl.float32)
            turned = tl.where(turned != turned, 0.0, tl.minimum(tl.maximum(turned, -limit), limit))
            tl.store(kv + (head - HEADS) * plane + slot * DEPTH + at, turned.to(kind), mask=inside)


def rotate_and_store(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    turn: Turn,
    kv: KVBuffers,
    layer: int,
    heads: int,
    norms: HeadNorms | None,
) -> Tensor:
    """Rotated queries [T, Hq, W] of qkv [T, (Hq + Hk) * W + Hk * Wv]; keys and values go to ``slots`` [T] of ``layer``,
    what is not finite made finite (see KVBuffers.write). positions [T] int64."""
    if not kernels_run(qkv):
        return rotate_and_store_reference(qkv, positions, slots, turn, kv, layer, heads, norms)
    shape, buffer = kv.shapes[layer], kv.layers[layer]
    rows = qkv.shape[0]
    q_out = torch.empty(rows, heads, shape.k_dim, dtype=qkv.dtype, device=qkv.device)
    nothing = turn.cos
    _rotate_and_store_kernel[(rows, heads + 2 * shape.heads)](
        qkv,
        positions,
        slots,
        turn.cos,
        turn.sin,
        nothing if norms is None else norms.q,
        nothing if norms is None else norms.k,
        q_out,
        buffer,
        0.0 if norms is None else norms.eps,
        buffer.stride(0),
        torch.finfo(qkv.dtype).max,
        HEADS=heads,
        KV_HEADS=shape.heads,
        WIDTH=shape.k_dim,
        V_WIDTH=shape.v_dim,
        DEPTH=shape.depth,
        BLOCK=triton.next_power_of_2(shape.depth),
        NORM=norms is not None,
        num_warps=1,
        **early(qkv),
    )
    return q_out
