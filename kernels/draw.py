"""The perturbed argmax on a GPU: from processed logits to tokens, with nothing that the host waits for.

The contract is that of ``kernels/sample.py`` with the noise of ``kernels/philox.py``: z = x / T, cut-offs in the order
(z descending, id ascending), the argmax of z + noise over what is kept, ties to the lowest id; the argmax of x where T
is 0 or z has no finite maximum. x are logits that masks, penalties and bias have already gone through. On a card every
number is the one that the torch forms compute there, bit for bit; in the interpreter noise differs in its last bits.

A program finds the best of a chunk of a row, one more program a row the best of these: a score's order and its id are
one int64, so the maximum decides ties as well. A row's result depends on nothing but its logits and parameters.

Shapes: N rows, W ids, C chunks of them, b best ids a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from specproxy.kernels.draw_cutoffs import Cuts, find_cuts, mass_ratio
from specproxy.kernels.draw_rows import CHUNK, DrawRows, cuts_off, is_finite, key_value, load_chunk, order_key
from specproxy.kernels.launching import early, interpreted, kernels_run, let_next_start, wait_for_input
from specproxy.kernels.philox import gumbel
from specproxy.kernels.sample import Cut, winners

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
"""Types of logits."""

_NO_ID = tl.constexpr(-0x7FFFFFFFFFFFFFFF)
_LAST_ID = tl.constexpr(0x7FFFFFFF)
_NOTHING = tl.constexpr((-2139095041 << 32) | 0x7FFFFFFF)
"""Score -inf of id 0, packed."""

_WORD = tl.constexpr(2.0**-32)
_MOST = tl.constexpr(1.0 - 2.0**-24)
_WARPS = 8


class Drawn(NamedTuple):
    """``tokens`` [N, b] int64, best first, and their ``scores`` [N, b] float32.

    A first score of NaN: the logits hold NaN; a score of -inf: there was nothing left to draw. The token beside it
    means nothing, but is an id of the vocabulary.
    """

    tokens: Tensor
    scores: Tensor


def draw_reference(logits: Tensor, rows: DrawRows, best: int = 1, ids: Tensor | None = None) -> Drawn:
    """The contract in torch; it waits for the device."""
    count, width = logits.shape
    token_of = torch.arange(width, device=logits.device) if ids is None else ids
    last = int(token_of.max()) + 1
    tokens = torch.zeros(count, best, dtype=torch.int64, device=logits.device)
    scores = torch.full((count, best), float("-inf"), device=logits.device)
    numbers = [column.tolist() for column in rows]
    for row, (lane, position) in enumerate(zip(*numbers[:2], strict=True)):
        if lane < 0:
            continue
        temperature, top_k, top_p, min_p, seed, choice, vocab = (column[lane] for column in numbers[2:])
        x = logits[row].float().masked_fill(token_of >= vocab, float("-inf"))
        noise = gumbel(seed, choice, position, 1, last, logits.device)[:, token_of]
        found = winners(x[None], noise, [Cut(temperature, top_k, top_p, min_p)], best)[0]
        drawn = torch.tensor(found.ids, device=logits.device)
        tokens[row, : len(drawn)] = token_of[drawn]
        scores[row, : len(drawn)] = torch.tensor(found.scores, device=logits.device)
    return Drawn(tokens, scores)


@triton.jit
def _words(ids, rows, row, lane, chunk, token, MAPPED: tl.constexpr, CHUNK: tl.constexpr):
    """uint32 of each id of a chunk. Four neighbours share a counter; of ids that are not neighbours each has its
    own."""
    seed = tl.load(rows.seed + lane)
    choice = tl.load(rows.choice + lane).to(tl.uint32)
    position = tl.load(rows.position + row).to(tl.uint32)
    if MAPPED:
        counter = (token // 4).to(tl.uint32)
    else:
        counter = (chunk * (CHUNK // 4) + tl.arange(0, CHUNK // 4)).to(tl.uint32)
    zero = counter * 0
    a, b, c, d = tl.philox(seed, choice + zero, position + zero, counter, zero, n_rounds=10)
    if MAPPED:
        which = token % 4
        words = tl.where(which < 2, tl.where(which == 0, a, b), tl.where(which == 2, c, d))
    else:
        words = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    return words


@triton.jit
def _gumbel(words, LIBDEVICE: tl.constexpr):
    """Noise of words: torch's logarithms on a card; float64 in the interpreter, which has no log1p."""
    u = tl.minimum((words.to(tl.float32) + 0.5) * _WORD, _MOST)
    if LIBDEVICE:
        noise = -libdevice.log(-libdevice.log1p(-u))
    else:
        noise = (-tl.log(-tl.log(1.0 - u.to(tl.float64)))).to(tl.float32)
    return noise


@triton.jit
def _cut(x, z, scores, rows, found, ties, row, lane, chunk, chunks, CHUNKS: tl.constexpr, LIBDEVICE: tl.constexpr):
    """Scores, -inf where cut off; x itself where z has no finite maximum."""
    lowest, kept = tl.load(found + row * 3).to(tl.int32), tl.load(found + row * 3 + 1)
    top = key_value(tl.load(found + row * 3 + 2).to(tl.int32))
    before = tl.arange(0, CHUNKS)
    earlier = tl.sum(tl.load(ties + row * chunks + before, mask=before < chunk, other=0), 0)
    key = order_key(z)
    equal = key == lowest
    place = earlier + tl.cumsum(equal.to(tl.int32), 0)
    keep = (key > lowest) | (equal & (place <= kept))
    keep = keep & (mass_ratio(z, top, LIBDEVICE) >= tl.load(rows.min_p + lane))
    return tl.where(is_finite(top), tl.where(keep, scores, float("-inf")), x)


@triton.jit
def _packed(scores, token):
    """int64 in the order (score ascending, id descending)."""
    return (order_key(scores).to(tl.int64) << 32) | (-(token - _LAST_ID)).to(tl.int64)


@triton.jit
def _score_of(packed):
    """The float32 that was packed."""
    return key_value((packed >> 32).to(tl.int32))


@triton.jit
def _best(packed, BEST: tl.constexpr):
    """The highest and, where two are wanted, the second highest."""
    first = tl.max(packed, 0)
    second = first
    if BEST == 2:
        second = tl.max(tl.where(packed == first, _NO_ID, packed), 0)
    return first, second


@triton.jit
def _chunk_kernel(
    logits,
    stride,
    ids,
    rows,
    found,
    ties,
    parts,
    W,
    chunks,
    BEST: tl.constexpr,
    CUT: tl.constexpr,
    MAPPED: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    LIBDEVICE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """parts[N, C, b] int64: the best of each chunk."""
    let_next_start(EARLY)
    wait_for_input(EARLY)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.load(rows.lane + row)
    if lane < 0:
        return
    x, token = load_chunk(logits, stride, ids, tl.load(rows.vocab + lane), row, chunk, W, MAPPED, CHUNK)
    temperature = tl.load(rows.temperature + lane)
    if temperature > 0.0:
        z = tl.div_rn(x, temperature)
        scores = z + _gumbel(_words(ids, rows, row, lane, chunk, token, MAPPED, CHUNK), LIBDEVICE)
        if CUT:  # noqa: SIM102 - decided when compiling, the inner one when running
            if cuts_off(rows, lane):
                scores = _cut(x, z, scores, rows, found, ties, row, lane, chunk, chunks, CHUNKS, LIBDEVICE)
        x = scores
    first, second = _best(_packed(x, token), BEST)
    tl.store(parts + (row * chunks + chunk) * BEST, first)
    if BEST == 2:
        tl.store(parts + (row * chunks + chunk) * BEST + 1, second)


@triton.jit
def _row_kernel(
    logits,
    stride,
    ids,
    rows,
    parts,
    tokens,
    scores,
    W,
    chunks,
    BEST: tl.constexpr,
    MAPPED: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The best of a row's chunks. Where the best has no finite score, the row is looked through again without noise."""
    let_next_start(EARLY)
    wait_for_input(EARLY)
    row = tl.program_id(0).to(tl.int64)
    lane = tl.load(rows.lane + row)
    chunk = tl.arange(0, CHUNKS)
    at = parts + (row * chunks + chunk) * BEST
    there = (chunk < chunks) & (lane >= 0)
    nothing = tl.full([], _NOTHING, tl.int64)
    first, second = _best(tl.load(at, mask=there, other=nothing), BEST)
    if BEST == 2:
        second = tl.maximum(second, tl.max(tl.load(at + 1, mask=there, other=nothing), 0))
    if (lane >= 0) & (not is_finite(_score_of(first))):
        vocab = tl.load(rows.vocab + lane)
        first, second = nothing, nothing
        for i in range(chunks):
            x, token = load_chunk(logits, stride, ids, vocab, row, i, W, MAPPED, CHUNK)
            best, next_best = _best(_packed(x, token), BEST)
            second = tl.maximum(tl.maximum(second, next_best), tl.minimum(first, best))
            first = tl.maximum(first, best)
    tl.store(tokens + row * BEST, -((first & _LAST_ID) - _LAST_ID))
    tl.store(scores + row * BEST, _score_of(first))
    if BEST == 2:
        tl.store(tokens + row * BEST + 1, -((second & _LAST_ID) - _LAST_ID))
        tl.store(scores + row * BEST + 1, _score_of(second))


def draw(logits: Tensor, rows: DrawRows, best: int = 1, *, cutoffs: bool = True, ids: Tensor | None = None) -> Drawn:
    """The ``best`` (1 or 2) best ids of each row of logits [N, W] (bf16, float16, float32; not changed).

    ``cutoffs``: whether any lane may use one, which the host knows; where false they are not looked at. ``ids`` [W]
    int64: the target's id of each of a drafter's own, ascending; noise, ties and ``rows.vocab`` go by it, and it is
    the answer. Two launches, 18 more with ``cutoffs``. Raises ValueError where shapes or types differ from these.
    """
    _check(logits, rows, best, ids)
    if not kernels_run(logits):
        return draw_reference(logits, rows, best, ids)
    count, width = logits.shape
    chunks, device = triton.cdiv(width, CHUNK), logits.device
    parts = torch.empty(count, chunks, best, dtype=torch.int64, device=device)
    drawn = Drawn(
        torch.empty(count, best, dtype=torch.int64, device=device),
        torch.empty(count, best, dtype=torch.float32, device=device),
    )
    if not count:
        return drawn
    cuts = find_cuts(logits, rows, ids) if cutoffs else Cuts(parts, parts)
    source = (logits, logits.stride(0), logits if ids is None else ids, rows)
    kind = {
        "BEST": best,
        "MAPPED": ids is not None,
        "CHUNK": CHUNK,
        "CHUNKS": triton.next_power_of_2(chunks),
        **early(logits),
    }
    _chunk_kernel[(count, chunks)](
        *source, *cuts, parts, width, chunks, CUT=cutoffs, LIBDEVICE=not interpreted(), num_warps=_WARPS, **kind
    )
    _row_kernel[(count,)](*source, parts, *drawn, width, chunks, num_warps=4, **kind)
    return drawn


def _check(logits: Tensor, rows: DrawRows, best: int, ids: Tensor | None) -> None:
    count, width = logits.shape
    if logits.dtype not in FLOATS or logits.stride(1) != 1:
        raise ValueError(
            f"draw: logits {logits.dtype} of strides {logits.stride()}; expected bfloat16, float16 or float32 whose "
            "rows are contiguous"
        )
    if best not in (1, 2) or width < best:
        raise ValueError(f"draw: best {best} of {width} ids; expected 1 or 2, and as many ids")
    if rows.lane.shape != (count,) or rows.position.shape != (count,):
        raise ValueError(
            f"draw: lane {list(rows.lane.shape)} and position {list(rows.position.shape)}; expected [{count}], a "
            "number for each row of logits"
        )
    if ids is not None and (ids.shape != (width,) or ids.dtype != torch.int64):
        raise ValueError(f"draw: ids {list(ids.shape)} {ids.dtype}; expected [{width}] int64, one for each logit")
