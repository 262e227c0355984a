"""Rotary position embedding in whatever precision a head has, float64 included.

transformers computes frequencies in float32; a head that is compared to 1e-9 needs its own. The scaling rules are those
of the papers and of ``transformers.modeling_rope_utils``: linear (Chen et al., arXiv 2306.15595), llama3 (Llama 3.1),
yarn (Peng et al., arXiv 2309.00071).

Shapes: T entries, Hn heads, W head width, R <= W rotated width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from specproxy.errors import ModelLoadError


@dataclass(frozen=True)
class Rotary:
    """Frequencies [R / 2] float64, and a factor on cos and sin."""

    frequencies: Tensor
    factor: float = 1.0

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [T, 1, R / 2] of positions [T]."""
        angles = positions.to(torch.float64)[:, None, None] * self.frequencies
        return (angles.cos() * self.factor).to(dtype), (angles.sin() * self.factor).to(dtype)


MAX_TABLE = 1 << 18
"""Positions looked up at most; behind that cos and sin are computed at each step, so that a target with millions of
positions costs no gigabytes."""


@dataclass
class Turn:
    """Rotary embedding of a step, the same for all layers of a head: its ``positions`` [T] and where factors are."""

    positions: Tensor
    table: RotaryTable

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor]:
        """cos and sin [T, 1, R]; the first half of sin is negated, so that turned heads are x * cos + swapped(x) *
        sin."""
        return self.table.look_up(self.positions)


class RotaryTable:
    """cos and sin of every position, looked up: two operations a step instead of eight."""

    def __init__(self, rotary: Rotary, length: int, dtype: torch.dtype) -> None:
        """Positions 0 .. length - 1, in ``dtype``. ``width``: rotated dimensions (R)."""
        self.width = 2 * rotary.frequencies.shape[0]
        self._rotary = rotary
        self._dtype = dtype
        self._tables: tuple[Tensor, Tensor] | None = None
        if length <= MAX_TABLE:
            self._tables = self._compute(torch.arange(length, device=rotary.frequencies.device))

    def at(self, positions: Tensor) -> Turn:
        """The embedding of positions [T], looked up by the first layer that needs it."""
        return Turn(positions, self)

    def whole(self) -> tuple[Tensor, Tensor] | None:
        """cos and sin [P, R] of all positions, as ``Turn.factors`` has them; ``None`` where they are too many."""
        return None if self._tables is None else (self._tables[0][:, 0], self._tables[1][:, 0])

    def look_up(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """See Turn.factors."""
        if self._tables is None:
            return self._compute(positions)
        cos, sin = self._tables
        return cos.index_select(0, positions), sin.index_select(0, positions)

    def _compute(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotary.tables(positions, self._dtype)
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def make_rotary(width: int, theta: float, scaling: Mapping[str, Any] | None, device: str) -> Rotary:
    """Frequencies for ``width`` rotated dimensions. ``scaling``: ``rope_scaling`` or ``rope_parameters`` of a
    configuration. Raises ModelLoadError for a type whose factors depend on more than the position."""
    frequencies = torch.pow(theta, -torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
    rules = dict(scaling or {})
    kind = rules.get("rope_type", rules.get("type", "default"))
    try:
        if kind == "default":
            return Rotary(frequencies)
        if kind == "linear":
            return Rotary(frequencies / rules["factor"])
        if kind == "llama3":
            return Rotary(_llama3(frequencies, rules))
        if kind == "yarn":
            return _yarn(frequencies, width, theta, rules)
    except KeyError as error:
        raise ModelLoadError(f"rotary embedding of type {kind!r} lacks {error}") from None
    raise ModelLoadError(f"rotary embedding of type {kind!r}; expected default, linear, llama3 or yarn")


def rotate(heads: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """heads [T, Hn, W] with their first R dimensions turned; pairs are (i, i + R / 2), or (2i, 2i + 1)."""
    width = 2 * cos.shape[-1]
    turned, rest = heads[..., :width], heads[..., width:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def _llama3(frequencies: Tensor, rules: Mapping[str, Any]) -> Tensor:
    low, high = float(rules["low_freq_factor"]), float(rules["high_freq_factor"])
    factor, trained = float(rules["factor"]), int(rules["original_max_position_embeddings"])
    smooth = ((trained * frequencies / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequencies / factor + smooth * frequencies


def _yarn(frequencies: Tensor, width: int, theta: float, rules: Mapping[str, Any]) -> Rotary:
    factor, trained = float(rules["factor"]), rules["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        return width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(rules.get("beta_fast") or 32), dimension(rules.get("beta_slow") or 1)
    if rules.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    index = torch.arange(width // 2, dtype=torch.float64, device=frequencies.device)
    ramp = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
    scaled = frequencies / factor * ramp + frequencies * (1 - ramp)
    return Rotary(scaled, _yarn_factor(factor, rules))


def _yarn_factor(factor: float, rules: Mapping[str, Any]) -> float:
    given = rules.get("attention_factor")
    if given is not None:
        return float(given)

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dims = rules.get("mscale"), rules.get("mscale_all_dim")
    if mscale and all_dims:
        return scale(mscale) / scale(all_dims)
    return scale(1.0)
