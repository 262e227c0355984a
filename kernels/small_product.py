"""Products of few rows with a large weight: as fast as the weight can be read, and row by row the same bits.

Contract. ``product``: x [M, K] times weight [N, K] transposed, plus bias [N]: [M, N]. ``gated_product``: weight
[2 * I, K] holds gate rows and up rows one behind the other (as merged for the layer loop), the result is silu(gate x) *
(up x) [M, I]. bf16 and float16, sums in float32. A row's bits depend neither on M nor on the other rows nor on where
it stands:

* the weight is the left factor, its 64 or 128 rows fill the tensor core's tile, and the rows of x are the columns.
  Their number changes how many columns there are, not how one of them is summed;
* K is cut into slices, as many as the *shape of the weight* says, and the last program to arrive adds up the slices'
  partial sums in the order of the slices.

Cutting K is what gives products of few columns enough programs to keep all memory channels busy; switching it off (what
batch-invariant modes elsewhere do) is what makes them slow.

Letters: M rows, N results, K inputs, I width of the gate, S slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from specproxy.kernels.launching import Scratch, early, fetch_ahead, kernels_run, let_next_start, wait_for_input

MAX_ROWS = 64
"""More rows are a product for the library: arithmetic begins to count."""

LINE: tl.constexpr = tl.constexpr(64)
"""Numbers of two bytes in a line of the cache."""

AHEAD = 512
"""Inputs whose weights a program asks for before it waits for what is in front of it."""

SHARED_BYTES = 220_000
"""Shared memory that a program's tiles may fill. Fewer stages change no bit."""

MAX_TILES = 4096
"""Counters held, one for each tile of results. Each is zero between products: the last program clears its own."""


@dataclass(frozen=True)
class Tiling:
    """How a weight's shape is cut. ``results``: weight rows of a program; ``inputs``: of one turn of its loop."""

    results: int
    inputs: int
    slices: int
    stages: int
    warps: int = 4


def choose_tiling(n: int, k: int, gated: bool) -> Tiling:
    """By shape alone, so that the same weight is always summed in the same order. The numbers are the fastest of some
    26 tilings for each shape of an 8B model on one H200; few programs (n small) are what slices are for."""
    if gated:
        return Tiling(128, 128, 1, 4)
    if n >= 32768:
        return Tiling(128, 128, 1, 4, 8)
    tiles, slices = -(-n // 64), 1
    while tiles * slices < 96 and k // (slices * 2) >= 512 and slices < 8:
        slices *= 2
    return Tiling(64, 128, slices, 6)


def product_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The contract in torch."""
    return F.linear(x, weight, bias)


def gated_reference(x: Tensor, weight: Tensor) -> Tensor:
    """The contract in torch."""
    gate, up = F.linear(x, weight).chunk(2, -1)
    return F.silu(gate) * up


@triton.jit
def _finish_slices(
    acc,
    partials,
    counters,
    tile,
    slice_number,
    SLICES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum of all slices' ``acc`` in the order of the slices, in the program that arrives last; whether this one did."""
    r = tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, COLUMNS)[None, :]
    at = partials + (tile * SLICES * ROWS * COLUMNS) + r * COLUMNS + c
    tl.store(at + slice_number * ROWS * COLUMNS, acc)
    tl.debug_barrier()
    arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")
    last = arrived == SLICES - 1
    total = acc
    if last:
        tl.store(counters + tile, 0)
        total = tl.load(at, cache_modifier=".cg")
        for s in range(1, SLICES):
            total += tl.load(at + s * ROWS * COLUMNS, cache_modifier=".cg")
    return total, last


@triton.jit(do_not_specialize=["M"])
def _product_kernel(
    x,
    weight,
    bias,
    out,
    partials,
    counters,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    RESULTS: tl.constexpr,
    INPUTS: tl.constexpr,
    SLICES: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    AHEAD: tl.constexpr,
    EARLY: tl.constexpr,
):
    let_next_start(EARLY)
    tile, slice_number = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, RESULTS)
    if GATED:
        half: tl.constexpr = RESULTS // 2
        column = tile * half + lane % half
        inside = column < N
        result = column + (lane // half) * N
    else:
        result = tile * RESULTS + lane
        inside = result < N
    r = tl.arange(0, ROWS)
    per_slice: tl.constexpr = K // SLICES
    k = slice_number * per_slice + tl.arange(0, INPUTS)
    w_at = weight + result.to(tl.int64)[:, None] * K + k[None, :]
    x_at = x + r[None, :] * K + k[:, None]
    acc = tl.zeros((RESULTS, ROWS), tl.float32)
    if EARLY:
        for line in range(0, AHEAD, LINE):
            fetch_ahead(weight + result.to(tl.int64) * K + slice_number * per_slice + line, EARLY)
    wait_for_input(EARLY)
    for start in range(0, per_slice, INPUTS):
        if EVEN:
            w = tl.load(w_at, mask=inside[:, None], other=0.0, eviction_policy="evict_first")
            xs = tl.load(x_at, mask=r[None, :] < M, other=0.0)
        else:
            here = start + tl.arange(0, INPUTS) < per_slice
            w = tl.load(w_at, mask=inside[:, None] & here[None, :], other=0.0)
            xs = tl.load(x_at, mask=(r[None, :] < M) & here[:, None], other=0.0)
        acc = tl.dot(w, xs, acc)
        w_at += INPUTS
        x_at += INPUTS
    if SLICES > 1:
        acc, last = _finish_slices(acc, partials, counters, tile, slice_number, SLICES, RESULTS, ROWS)
        if not last:
            return
    kind = out.dtype.element_ty
    if GATED:
        gate, up = acc.reshape(2, RESULTS // 2, ROWS).permute(1, 2, 0).split()
        gate = gate.to(kind).to(tl.float32)
        value = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32) * up.to(kind).to(tl.float32)
        n = tile * (RESULTS // 2) + tl.arange(0, RESULTS // 2)
    else:
        value = acc
        n = tile * RESULTS + tl.arange(0, RESULTS)
        if BIAS:
            value += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    tl.store(out + r[None, :] * N + n[:, None], value.to(kind), mask=(n[:, None] < N) & (r[None, :] < M))


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool, tiling: Tiling) -> Tensor:
    m, k = x.shape
    n = weight.shape[0] // 2 if gated else weight.shape[0]
    if weight.shape[1] != k or not 0 < m <= MAX_ROWS:
        raise ValueError(f"x {tuple(x.shape)}, weight {tuple(weight.shape)}; expected [1..{MAX_ROWS}, K] and [N, K]")
    slices = tiling.slices if k % (tiling.slices * tiling.inputs) == 0 else 1
    rows = max(16, triton.next_power_of_2(m))
    per_tile = tiling.results // 2 if gated else tiling.results
    tiles = triton.cdiv(n, per_tile)
    scratch = Scratch.of(x.device)
    partials = scratch.take("partial products", tiles * slices * tiling.results * MAX_ROWS if slices > 1 else 1)
    counters = scratch.take("product counters", MAX_TILES, torch.int32)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    held = (tiling.results + rows) * tiling.inputs * x.element_size()
    options: dict[str, Any] = {
        "num_warps": tiling.warps,
        "num_stages": max(1, min(tiling.stages, SHARED_BYTES // held)),
    }
    _product_kernel[(tiles, slices)](
        x,
        weight,
        bias,
        out,
        partials,
        counters,
        m,
        n,
        k,
        ROWS=rows,
        RESULTS=tiling.results,
        INPUTS=tiling.inputs,
        SLICES=slices,
        GATED=gated,
        BIAS=bias is not None,
        EVEN=k % (slices * tiling.inputs) == 0,
        AHEAD=min(AHEAD, k // slices),
        **options,
        **early(x),
    )
    return out


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, tiling: Tiling | None = None) -> Tensor:
    """See the module's text: x [M, K], weight [N, K], bias [N] -> [M, N], M at most MAX_ROWS."""
    if not kernels_run(x):
        return product_reference(x, weight, bias)
    tiling = tiling or choose_tiling(weight.shape[0], weight.shape[1], gated=False)
    return _run(x.contiguous(), weight, bias, False, tiling)


def gated_product(x: Tensor, weight: Tensor, tiling: Tiling | None = None) -> Tensor:
    """See the module's text: x [M, K], weight [2 * I, K] -> [M, I], M at most MAX_ROWS."""
    if not kernels_run(x):
        return gated_reference(x, weight)
    tiling = tiling or choose_tiling(weight.shape[0], weight.shape[1], gated=True)
    return _run(x.contiguous(), weight, None, True, tiling)
