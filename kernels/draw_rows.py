"""What the kernels of ``draw.py`` and ``draw_cutoffs.py`` share: the rows' parameters, the order of scores, a chunk.

Shapes: N rows, B lanes, W ids.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

CHUNK = 2048
"""Ids of one program."""

_NAN_KEY = tl.constexpr(0x7FFFFFFF)


class DrawRows(NamedTuple):
    """What rows are drawn with, all on the logits' device.

    Of each row: ``lane`` [N] int32, its entry in what follows, -1 for a row that is not drawn; ``position`` [N] int64,
    the absolute position of its token, which keys the noise. Of each lane: ``temperature`` [B] float32; ``top_k`` [B]
    int32, 0 is off; ``top_p`` [B] float64, 1 is off; ``min_p`` [B] float32, 0 is off; ``seed``, ``choice`` [B] int64;
    ``vocab`` [B] int32: ids from there on are not drawn.
    """

    lane: Tensor
    position: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    choice: Tensor
    vocab: Tensor


@triton.jit
def order_key(value):
    """int32 that stand in the order of float32 values: both zeros are one, NaN is above everything."""
    value = tl.where(value == 0.0, 0.0, value)
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(value != value, _NAN_KEY, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def key_value(key):
    """The float32 of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def is_finite(value):
    """Neither NaN nor infinite."""
    return tl.abs(value) < float("inf")


@triton.jit
def cuts_off(rows, lane):
    """Whether any cut-off applies to a lane's rows."""
    top_k, top_p = tl.load(rows.top_k + lane), tl.load(rows.top_p + lane)
    any_cut = (top_k > 0) | (top_p < 1.0) | (tl.load(rows.min_p + lane) > 0.0)
    return any_cut & (tl.load(rows.temperature + lane) > 0.0)


@triton.jit
def load_chunk(logits, stride, ids, vocab, row, chunk, W, MAPPED: tl.constexpr, CHUNK: tl.constexpr):
    """Logits of a chunk in float32, -inf where there is nothing to draw, and their ids."""
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = at < W
    if MAPPED:
        token = tl.load(ids + at, mask=inside, other=0).to(tl.int32)
    else:
        token = at
    x = tl.load(logits + row * stride + at, mask=inside, other=float("-inf"))
    return tl.where(token < vocab, x.to(tl.float32), float("-inf")), token
