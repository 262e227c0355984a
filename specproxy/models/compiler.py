"""``python -m specproxy.models.compiler PATH DTYPE PAGE_SIZE THREADS OUT``: a draft model's step as a library.

Run by ``compiled.py`` in a process of its own. Traces the lean layer loop with ``torch.export``, rows, pages and slots
being variable, and compiles it ahead of time (AOTInductor, https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from specproxy.kernels.paged import KEY_BLOCK, KVBuffers
from specproxy.kernels.row_attention import RowAttention
from specproxy.models.fused import FusedModel
from specproxy.models.linear import Linear
from specproxy.models.loading import load_model
from specproxy.models.norm import Norm

MAX_ROWS = 16
"""Rows of a compiled step: eight sequences that each catch up two tokens."""
MIN_ROWS, MIN_PAGES = 2, 2
"""Tracing takes a size of one for a constant; a lone row gets a companion whose result nobody reads."""


class Step(torch.nn.Module):
    """The layer loop as a function of tensors alone."""

    def __init__(self, model: FusedModel, page_size: int) -> None:
        super().__init__()
        self._model = model
        self._page_size = page_size

    def forward(self, ids: Tensor, positions: Tensor, slots: Tensor, pages: Tensor, layers: Sequence[Tensor]) -> Tensor:
        """Logits [T, V] of rows ids [T], positions [T]; KV goes to slots [T] of layers, each row sees pages [T, P]."""
        kv = KVBuffers(self._model.spec.layers, layers, self._page_size)
        return self._model.forward(ids, positions, RowAttention(slots, positions, pages), kv, None)[0]


def _linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Plain: the compiler packs weights itself."""
    return lambda x: F.linear(x, weight, bias)


def _norm(weight: Tensor, eps: float) -> Norm:
    """Plain: the compiler fuses it."""
    return lambda x: F.rms_norm(x, (weight.shape[0],), weight, eps)


def compile_step(model: FusedModel, page_size: int, out: str) -> None:
    """Write the library of ``model``'s step to ``out``."""
    spec = model.spec
    plain = FusedModel(model.stock, spec, _linear, _norm)
    rows, width = 4, 5
    kv = KVBuffers.allocate(spec.layers, width + KVBuffers.RESERVED_PAGES, page_size, spec.dtype, "cpu")
    example = (
        torch.zeros(rows, dtype=torch.long),
        torch.arange(rows) + page_size,
        torch.arange(rows) + kv.trash_slot,
        torch.full((rows, width), KVBuffers.RESERVED_PAGES),
        kv.layers,
    )
    size = torch.export.Dim
    t, p = size("t", min=MIN_ROWS, max=MAX_ROWS), size("p", min=MIN_PAGES, max=-(-spec.max_len // page_size))
    slots = size("slots", min=KEY_BLOCK, max=2**31)
    shapes = ({0: t}, {0: t}, {0: t}, {0: t, 1: p}, [{1: slots} for _ in kv.layers])
    exported = torch.export.export(Step(plain, page_size), example, dynamic_shapes=shapes)
    torch._inductor.aoti_compile_and_package(  # noqa: SLF001 - the documented name has the underscore
        exported, package_path=out, inductor_configs={"freezing": True}
    )


def main(arguments: Sequence[str]) -> None:
    """Load, compile, write."""
    path, dtype, page_size, threads, out = arguments
    torch.set_grad_enabled(False)
    torch.set_num_threads(int(threads))
    model, _ = load_model(path, "draft", dtype=dtype, device="cpu", path_kind="fused")
    if not isinstance(model, FusedModel):
        raise TypeError(f"{path}: expected a model of the lean layer loop, got {type(model).__name__}")
    compile_step(model, int(page_size), out)


if __name__ == "__main__":
    main(sys.argv[1:])
