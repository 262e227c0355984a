"""Products, norms, attention and MLP as calls into C++ (``cpp/``), for models and heads in bf16 on a CPU.

Shapes: T rows, K inputs and N outputs of a product, D hidden width, R rotated width.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import torch
from torch import Tensor

from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.kernels.plan import StepPlan
from specproxy.models import library
from specproxy.models.library import Library
from specproxy.models.linear import Linear, make_linear
from specproxy.models.norm import Norm, make_rms_norm

PANEL = 32
"""Outputs that are summed together: widths must be multiples."""

MOST_HEAD_WIDTH, MOST_GROUP = 256, 16
"""Sizes of fixed rooms in the code."""


class Arena:
    """Memory for ``size`` bf16 numbers, in huge pages where the system has them: a step reads all weights, and in pages
    of 4 KiB it waits for their addresses (2.1 instead of 1.5 ms at one row, house target, one thread of Zen 4)."""

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, 2 * size)
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._free = torch.frombuffer(memory, dtype=torch.bfloat16)

    def keep(self, numbers: Tensor) -> Tensor:
        """A contiguous copy, here if there is room."""
        if numbers.numel() > self._free.numel():
            return numbers.contiguous()
        taken, self._free = self._free[: numbers.numel()], self._free[numbers.numel() :]
        return taken.view(numbers.shape).copy_(numbers)


class NativeLinear:
    """A product over a packed weight: x [T, K] -> [T, N]. ``struct``: the same for code; ``at``: where that is."""

    def __init__(self, code: Library, arena: Arena, weight: Tensor, bias: Tensor | None) -> None:
        outputs, inputs = weight.shape
        self.code = code
        self._packed = arena.keep(weight.view(outputs // PANEL, PANEL, inputs // 2, 2).transpose(1, 2))
        self._bias = None if bias is None else bias.float()
        self.outputs = outputs
        self.struct = library.Product(self._packed.data_ptr(), address(self._bias), inputs, outputs)
        self.at = ctypes.addressof(self.struct)

    def __call__(self, x: Tensor) -> Tensor:
        """See the class."""
        x, out = x.contiguous(), x.new_empty(x.shape[0], self.outputs)
        self.code.run_product(self.at, x.data_ptr(), x.shape[0], out.data_ptr(), torch.get_num_threads())
        return out


class NativeNorm:
    """RMSNorm of x [T, D]. ``weight`` [D]: float32."""

    def __init__(self, code: Library, weight: Tensor, eps: float) -> None:
        self._run = code.run_norm
        self._eps = eps
        self.weight = weight.float().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """See the class."""
        x, out = x.contiguous(), torch.empty_like(x)
        self._run(x.data_ptr(), self.weight.data_ptr(), x.shape[0], x.shape[1], self._eps, out.data_ptr())
        return out


class NativeParts:
    """Makes products and norms of one model: native where their widths allow, torch's where not. ``size``: numbers of
    all weights together."""

    def __init__(self, code: Library, size: int) -> None:
        self.code = code
        self._arena = Arena(size)

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """The product over ``weight`` [N, K] and ``bias`` [N]."""
        if weight.dtype != torch.bfloat16 or weight.shape[0] % PANEL or weight.shape[1] % 2:
            return make_linear(weight, bias)
        return NativeLinear(self.code, self._arena, weight, bias)

    def norm(self, weight: Tensor, eps: float) -> Norm:
        """The RMSNorm with ``weight`` [D]."""
        if weight.dtype != torch.bfloat16 or weight.shape[0] % PANEL:
            return make_rms_norm(weight, eps)
        return NativeNorm(self.code, weight, eps)


class NativeAttention:
    """Attention [T, D] -> [T, D] with its products, rotation, keys and values, as one call.

    ``qk_norms``: weights of the norms on queries and keys. ``rotated``: R.
    """

    def __init__(
        self,
        products: tuple[NativeLinear, NativeLinear],
        qk_norms: tuple[Tensor, Tensor] | None,
        heads: int,
        shape: LayerShape,
        rotated: int,
        eps: float,
        window: int | None,
    ) -> None:
        qkv, self._out = products
        self._norms = None if qk_norms is None else (qk_norms[0].float(), qk_norms[1].float())
        self.struct = library.Attention(
            qkv.struct,
            self._out.struct,
            None,
            None,
            *((None, None) if self._norms is None else map(address, self._norms)),
            heads,
            shape.heads,
            shape.k_dim,
            rotated,
            window or 0,
            eps,
            shape.k_dim**-0.5,
        )

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, plan: StepPlan, kv: KVBuffers, layer: int) -> Tensor:
        """x [T, D], cos and sin-folded sin [T, 1, R] -> [T, D]; keys and values go to ``plan.slots``."""
        x, out = x.contiguous(), x.new_empty(x.shape[0], self._out.outputs)
        self.struct.cos, self.struct.sin = cos.data_ptr(), sin.data_ptr()
        order = torch.arange(x.shape[0])
        rows = rows_of(plan, order)
        self._out.code.run_attention(
            ctypes.addressof(self.struct),
            ctypes.addressof(rows),
            x.data_ptr(),
            kv.layers[layer].data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out


def native_attention(
    qkv: Linear,
    out: Linear,
    qk_norms: tuple[Tensor, Tensor] | None,
    heads: int,
    shape: LayerShape,
    rotated: int,
    eps: float,
    window: int | None,
) -> NativeAttention | None:
    """Attention around two products, if they are native and the sizes fit."""
    if not isinstance(qkv, NativeLinear) or not isinstance(out, NativeLinear):
        return None
    if not heads_fit(heads, shape) or rotated % PANEL:
        return None
    return NativeAttention((qkv, out), qk_norms, heads, shape, rotated, eps, window)


def native_mlp(gate_up: Linear, down: Linear) -> Linear | None:
    """down(silu(gate x) * up x), x [T, D] -> [T, D], around two products, if they are native."""
    if not isinstance(gate_up, NativeLinear) or not isinstance(down, NativeLinear) or gate_up.outputs % (2 * PANEL):
        return None
    first, last = gate_up, down

    def run(x: Tensor) -> Tensor:
        x, out = x.contiguous(), x.new_empty(x.shape[0], last.outputs)
        last.code.run_mlp(first.at, last.at, x.data_ptr(), x.shape[0], out.data_ptr(), torch.get_num_threads())
        return out

    return run


def heads_fit(heads: int, shape: LayerShape) -> bool:
    """Whether heads of these sizes have room in the code."""
    square = shape.k_dim == shape.v_dim and shape.k_dim % PANEL == 0
    return square and shape.k_dim <= MOST_HEAD_WIDTH and heads // shape.heads <= MOST_GROUP


def rows_of(plan: StepPlan, positions: Tensor) -> library.Rows:
    """``plan`` as the code reads it, for rows at ``positions`` [T]: addresses in both, which must outlive the call."""
    base = plan.lists.numbers.data_ptr()
    parts = [base + 8 * start for start in plan.lists.starts]
    kv = plan.kv
    return library.Rows(len(positions), kv.page_size, kv.num_slots, positions.data_ptr(), plan.slots.data_ptr(), *parts)


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers are; ``None`` stays."""
    return None if tensor is None else tensor.data_ptr()
