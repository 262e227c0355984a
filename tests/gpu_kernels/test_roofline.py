"""The kernels of a step as parts to be measured: what each moves, and that each runs."""

from __future__ import annotations

import pytest
import torch

from specproxy.bench import roofline
from specproxy.bench.roofline import PART_ROWS, Sizes
from specproxy.bench.roofline_device import device_makers
from specproxy.kernels.paged import LayerShape

SMALL = Sizes(64, 96, 4, LayerShape(2, 32, 32), 2, 300, torch.float16, "cpu")
KERNELS = {"qkv", "o", "down", "head", "gate", "add_norm", "rotate_and_store", "draw"}


def test_every_kernel_runs_as_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter: each kernel of a step and the library's products."""
    monkeypatch.setitem(roofline.COLD_BYTES, "cpu", 1)
    found = {}
    with torch.no_grad():
        for make in device_makers(SMALL):
            for part in make():
                if part.rows == 1:  # sixteen rows are another shape of the same programs, and take long here
                    part.copies[-1]()
                found[part.name.split(",")[0].split(" ")[0], part.rows] = part.bytes
    assert set(found) == {*((name, n) for name in KERNELS for n in PART_ROWS), ("tree_walk", 1), ("compact", 1)}
    assert found["compact", 1] == 2 * 8 * 8 * 2 * (2 * 2 * 32) * 2
