"""Compiles every GPU kernel for a card that is not there (compute capability 9.0) and prints what each takes.

The interpreter runs what Python can run; whether the compiler accepts a kernel shows here alone, without a card.
Launchers are called as they are, with tensors of the CPU: instead of a launch, the kernel is compiled for their types
and constants.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from specproxy.kernels import (
    compact,
    draw,
    draw_cutoffs,
    layer_parts,
    place,
    ragged_attention,
    small_product,
    tree_walk,
)
from specproxy.kernels.attention import Scoring, Span
from specproxy.kernels.draw_rows import DrawRows
from specproxy.kernels.paged import KVBuffers, LayerShape

MODULES = (compact, draw, draw_cutoffs, layer_parts, place, ragged_attention, small_product, tree_walk)
run = JITFunction.run


class NoCard:
    """What triton asks of a driver in order to compile."""

    def get_current_target(self) -> GPUTarget:
        """Compute capability 9.0, warps of 32."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0


def compile_instead(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
    """Stands in for a launch."""
    if "EARLY" in self.arg_names:
        options |= {"EARLY": True, "launch_pdl": True}
    compiled = run(self, *args, grid=grid, warmup=True, **options)
    print(f"{self.fn.__name__}: {compiled.metadata.shared} bytes of shared memory, {compiled.metadata.num_warps} warps")
    return compiled


def without_card() -> None:
    """From here on kernels are compiled for a card, and nothing is launched."""
    driver.set_active(NoCard())
    JITFunction.run = compile_instead
    for module in MODULES:
        if hasattr(module, "kernels_run"):
            module.kernels_run = lambda x: True
        if hasattr(module, "early"):
            module.early = lambda x: {}


def main() -> None:
    """Every launcher once or more, in the shapes of an 8B model and of the house model."""
    half = torch.bfloat16
    for rows in (1, 17, 64):
        small_product.product(torch.zeros(rows, 4096, dtype=half), torch.zeros(4096, 4096, dtype=half))
        small_product.gated_product(torch.zeros(rows, 384, dtype=half), torch.zeros(2048, 384, dtype=half))
    small_product.product(
        torch.zeros(1, 200, dtype=half), torch.zeros(70, 200, dtype=half), torch.zeros(70, dtype=half)
    )
    x, weight = torch.zeros(2, 4096, dtype=half), torch.zeros(4096, dtype=half)
    layer_parts.add_norm(x, x, weight, 1e-5)
    layer_parts.add_norm(x, None, weight, 1e-5)
    kv = KVBuffers.allocate([LayerShape(8, 128, 128), LayerShape(2, 64, 64)], 4, 64, half, "cpu")
    positions, slots = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    turn = layer_parts.Turn(torch.zeros(9, 128, dtype=half), torch.zeros(9, 128, dtype=half))
    norms = layer_parts.HeadNorms(weight[:128], weight[:128], 1e-6)
    for how in (None, norms):
        qkv = torch.zeros(2, 48 * 128, dtype=half)
        layer_parts.rotate_and_store(qkv, positions, slots, turn, kv, 0, 32, how)
    for layer, heads, width in ((0, 32, 128), (1, 6, 64)):
        plan = ragged_attention.plan_ragged([Span(0, 2, 5, [2])], slots, kv, 4)
        q = torch.zeros(2, heads, width, dtype=half)
        for scoring in (Scoring(0.1), Scoring(0.1, 9, 30.0, torch.zeros(heads))):
            plan.attend(kv, layer, q, scoring)
    rows = DrawRows(
        lane=torch.zeros(2, dtype=torch.int32),
        position=positions,
        temperature=torch.ones(1),
        top_k=torch.zeros(1, dtype=torch.int32),
        top_p=torch.ones(1, dtype=torch.float64),
        min_p=torch.zeros(1),
        seed=torch.zeros(1, dtype=torch.int64),
        choice=torch.zeros(1, dtype=torch.int64),
        vocab=torch.full((1,), 8192, dtype=torch.int32),
    )
    for best, cutoffs in ((1, False), (2, True)):
        draw.draw(torch.zeros(2, 8192, dtype=half), rows, best, cutoffs=cutoffs)
    draft = torch.zeros(1, 5, dtype=torch.int64)
    root = torch.zeros(1, dtype=torch.int64)
    walked = tree_walk.tree_walk(draft, draft - 1, root, torch.zeros(1, 6, dtype=torch.int64))
    rows, tables = torch.zeros(3, dtype=torch.int32), torch.zeros(1, 4, dtype=torch.int32)
    paths = torch.zeros(3, 64, dtype=torch.int32)
    places = place.Places(rows, rows, rows, rows.long(), rows, paths)
    first = tables[:, 0].contiguous()
    for spots in (place.Spots(rows, rows), place.Spots(rows, rows, paths)):
        place.place(tables, root, root, first, spots, 64, 64, places)
    place.store_page_ends(torch.zeros(3, 384, dtype=half), places.turn, tables, 64, torch.zeros(9, 384, dtype=half))
    compact.compact(kv, torch.zeros(1, 2, dtype=torch.int32), root, walked.accepted, walked.length)


if __name__ == "__main__":
    without_card()
    main()
