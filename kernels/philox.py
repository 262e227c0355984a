"""Gumbel noise that is a pure function of (seed, choice, position, token id).

Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a keyed bijection
of 128-bit counters: no state, any element on its own, in any order. Here the key is the seed (low and high 32 bits) and
the counter is (choice, position, id // 4, 0); word id % 4 of the result belongs to token ``id``.

A word x becomes ``u = (float32(x) + 0.5) * 2**-32``, clamped to at most 1 - 2**-24, and ``-log(-log1p(-u))``: standard
Gumbel noise, finely resolved where it is large. Integers are bit-equal everywhere. Logarithms are not: elements that
must agree are computed by the same function on the same kind of device.

Two forms: ``*_host`` on numpy, what a CPU runs; and the torch reference for every device. Shapes: P positions,
V token ids, C = ceil(V / 4) counters.
"""

from __future__ import annotations

import numpy as np
import torch

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK32 = 0xFFFFFFFF

_HALF = np.float32(0.5)
_MINUS_STEP = np.float32(-(2.0**-32))
_MINUS_MOST = np.float32(2.0**-24 - 1.0)

HostWords = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox_host(counter: HostWords, seed: int) -> HostWords:
    """Four words of each counter: uint64 arrays that hold 32-bit values, broadcast together; inputs are not changed.

    ``seed``: 64 bits, the key. While the words still differ in shape (the first three rounds, when only the position
    and the id vary) products are small; then all rounds run in place. 8 positions of 8192 ids take 190 us (AMD EPYC
    Zen 5, one thread); the same in torch int64 366 us, in uint32 with strided views 278 us.
    """
    c0, c1, c2, c3 = counter
    m0, m1, mask, shift = (np.uint64(m) for m in (*MULTIPLIERS, MASK32, 32))
    keys = _round_keys(seed)
    for k0, k1 in keys[:3]:
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & mask, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & mask
    shape = np.broadcast_shapes(c0.shape, c1.shape, c2.shape, c3.shape)
    c0, c1, c2, c3 = (c if c.shape == shape else np.broadcast_to(c, shape).copy() for c in (c0, c1, c2, c3))
    high = np.empty(shape, np.uint64)
    for k0, k1 in keys[3:]:
        c0 *= m0
        c2 *= m1
        np.right_shift(c2, shift, out=high)
        c1 ^= high
        c1 ^= np.uint64(k0)
        np.right_shift(c0, shift, out=high)
        c3 ^= high
        c3 ^= np.uint64(k1)
        c0 &= mask
        c2 &= mask
        c0, c1, c2, c3 = c1, c2, c3, c0
    return c0, c1, c2, c3


def gumbel_host(seed: int, choice: int, start: int, positions: int, vocab: int) -> np.ndarray:
    """Noise[P, V] float32 of ``positions`` positions from ``start`` on, on the CPU."""
    counters = -(-vocab // 4)
    words = philox_host(
        (
            np.full((1, 1), choice & MASK32, np.uint64),
            np.arange(start, start + positions, dtype=np.uint64)[:, None] & np.uint64(MASK32),
            np.arange(counters, dtype=np.uint64)[None],
            np.zeros((1, 1), np.uint64),
        ),
        seed,
    )
    noise = np.empty((positions, counters * 4), np.float32)
    for i, word in enumerate(words):
        np.copyto(noise[:, i::4], word, casting="unsafe")
    return _perturb_host(noise)[:, :vocab]


def _perturb_host(words: np.ndarray) -> np.ndarray:
    """Noise of float32 words, in their place."""
    words += _HALF
    words *= _MINUS_STEP
    np.maximum(words, _MINUS_MOST, out=words)
    np.log1p(words, out=words)
    np.negative(words, out=words)
    np.log(words, out=words)
    np.negative(words, out=words)
    return words


def philox(counter: Words, seed: int) -> Words:
    """Four words of each counter: int64 tensors that hold 32-bit values, broadcast together, on any device.

    Products wrap around in int64; their low 64 bits are the unsigned ones, and the mask drops the sign that an
    arithmetic shift drags in.
    """
    c0, c1, c2, c3 = counter
    m0, m1 = MULTIPLIERS
    for k0, k1 in _round_keys(seed):
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> 32 & MASK32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32 & MASK32) ^ c3 ^ k1, p0 & MASK32
    return c0, c1, c2, c3


def gumbel(seed: int, choice: int, start: int, positions: int, vocab: int, device: torch.device) -> torch.Tensor:
    """Noise[P, V] float32 as ``gumbel_host``, on ``device``."""
    counters = -(-vocab // 4)
    words = philox(
        (
            torch.full((1, 1), choice & MASK32, dtype=torch.int64, device=device),
            (torch.arange(start, start + positions, device=device) & MASK32)[:, None],
            torch.arange(counters, device=device)[None],
            torch.zeros((1, 1), dtype=torch.int64, device=device),
        ),
        seed,
    )
    return _perturb(torch.stack(words, dim=-1).reshape(positions, counters * 4)[:, :vocab].float())


def _perturb(words: torch.Tensor) -> torch.Tensor:
    """Noise of float32 words, in their place."""
    words.add_(0.5).mul_(2.0**-32).clamp_(max=1.0 - 2.0**-24)
    return words.neg_().log1p_().neg_().log_().neg_()


def _round_keys(seed: int) -> list[tuple[int, int]]:
    """The key of each round: both halves of the seed, bumped by the Weyl constants."""
    low, high = seed & MASK32, seed >> 32 & MASK32
    return [((low + r * WEYL[0]) & MASK32, (high + r * WEYL[1]) & MASK32) for r in range(ROUNDS)]
