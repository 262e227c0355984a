"""The parts of a step on a card: each is captured and timed as the bench does it."""

from __future__ import annotations

import pytest
import torch

from specproxy.bench import roofline
from specproxy.bench.roofline import PART_ROWS, Sizes, part_makers, time_part
from specproxy.bench.timing import make_clock
from specproxy.kernels.paged import LayerShape

SIZES = Sizes(384, 1024, 6, LayerShape(2, 64, 64), 2, 8192, torch.bfloat16, "cuda")
PARTS = {"qkv", "o", "down", "head", "gate", "add_norm", "rotate_and_store", "draw", "attention"}

pytestmark = pytest.mark.gpu


def test_every_part_is_captured_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel of a step, at one row and at a verified draft's, takes some time, and nothing fails in a graph."""
    monkeypatch.setitem(roofline.COLD_BYTES, "cuda", 1)
    clock, found = make_clock("cuda"), {}
    with torch.no_grad():
        for make in part_makers(SIZES, [100]):
            for part in make():
                name = part.name.split(",")[0].split(" ")[0]
                found[name, part.rows] = time_part(part, clock, "cuda", 2).median
    assert set(found) == {*((name, n) for name in PARTS for n in PART_ROWS), ("tree_walk", 1), ("compact", 1)}
    assert all(seconds > 0 for seconds in found.values())
