"""Products, norms, attention and MLP of heads on a GPU: the launches of ``models/device.py``, for one layer at a time.

Imported only where there is a GPU, or in tests: it needs Triton.

Shapes: T rows, H hidden width, Hq query heads, Hk key heads, W head width, R rotated width, P positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from specproxy.heads.rotary import Turn
from specproxy.kernels import layer_parts
from specproxy.kernels.attention import Attention, Scoring
from specproxy.kernels.layer_parts import HeadNorms, add_norm, rotate_and_store
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.small_product import MAX_ROWS, gated_product, gated_reference
from specproxy.models.device import KERNEL_TYPES, DeviceLinear
from specproxy.models.linear import Linear

if TYPE_CHECKING:
    from specproxy.heads.blocks import Geometry


class RowNorm:
    """RMSNorm [T, H] -> [T, H] in one launch, alone or behind a residual sum."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """The norm alone."""
        return add_norm(x.contiguous(), None, self._weight, self._eps).normed

    def after(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """x + delta [T, H], and its norm."""
        return add_norm(x.contiguous(), delta.contiguous(), self._weight, self._eps)


class DeviceAttention:
    """Attention [T, H] -> [T, H] around two products: rotation and the write of keys and values are one launch.

    ``tables``: cos and sin [P, W] of all positions.
    """

    def __init__(
        self,
        products: tuple[Linear, Linear],
        norms: HeadNorms | None,
        heads: int,
        scoring: Scoring,
        tables: layer_parts.Turn,
    ) -> None:
        self._qkv, self._out = products
        self._norms = norms
        self._heads = heads
        self._scoring = scoring
        self._tables = tables

    def __call__(self, x: Tensor, turn: Turn, plan: Attention, kv: KVBuffers, layer: int) -> Tensor:
        """x [T, H] -> [T, H]; keys and values go to ``plan.slots`` of ``layer``."""
        q = rotate_and_store(
            self._qkv(x), turn.positions, plan.slots, self._tables, kv, layer, self._heads, self._norms
        )
        return self._out(plan.attend(kv, layer, q, self._scoring))


class DeviceParts:
    """Makes the parts of a layer; what has no kernel is ``None``, and torch's operations serve."""

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """The product over ``weight`` [N, K] and ``bias`` [N]."""
        return DeviceLinear(weight, bias)

    def norm(self, weight: Tensor, eps: float) -> RowNorm:
        """The RMSNorm with ``weight`` [H]."""
        return RowNorm(weight, eps)

    def attention(
        self,
        products: tuple[Linear, Linear],
        qk_norms: tuple[Tensor, Tensor] | None,
        shape: Geometry,
        scoring: Scoring,
    ) -> DeviceAttention | None:
        """Attention around two products, of heads that are rotated over their whole width."""
        tables = shape.rotary.whole()
        if tables is None or shape.rotary.width != shape.head_dim:
            return None
        norms = None if qk_norms is None else HeadNorms(*qk_norms, shape.eps)
        return DeviceAttention(products, norms, shape.heads, scoring, layer_parts.Turn(*tables))

    def mlp(self, gate_up: Linear, down: Linear) -> Linear | None:
        """down(silu(gate x) * up x), x [T, H] -> [T, H]; a bias of gate and up has no kernel."""
        if not isinstance(gate_up, DeviceLinear) or gate_up.bias is not None:
            return None
        weight = gate_up.weight

        def run(x: Tensor) -> Tensor:
            few = x.shape[0] <= MAX_ROWS and x.dtype in KERNEL_TYPES
            return down((gated_product if few else gated_reference)(x, weight))

        return run
