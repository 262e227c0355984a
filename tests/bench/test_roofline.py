"""The parts of a step: what each moves, and that each runs as it is measured. Kernels: ``tests/gpu_kernels``."""

from __future__ import annotations

import pytest
import torch

from specproxy.bench import roofline
from specproxy.bench.roofline import (
    PART_ROWS,
    PartTime,
    Sizes,
    attention_parts,
    over_library,
    parts_table,
    product_parts,
    time_part,
)
from specproxy.bench.timing import Timing, WallClock
from specproxy.kernels.paged import LayerShape
from specproxy.models.linear import make_linear

SMALL = Sizes(64, 96, 4, LayerShape(2, 32, 32), 2, 300, torch.float16, "cpu")


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield


def test_copies_are_enough_to_leave_every_cache() -> None:
    """Large weights are two copies at least, small ones not more than are worth it."""
    assert SMALL.copies(10**9) == 2
    assert SMALL.copies(10**7) * 10**7 >= roofline.COLD_BYTES["cpu"]
    assert SMALL.copies(1) == roofline.MOST_COPIES


def test_a_product_moves_its_weight_inputs_and_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bytes a number; all copies are run, and the time is one copy's."""
    monkeypatch.setitem(roofline.COLD_BYTES, "cpu", 3 * 64 * 96 * 2)
    parts = list(product_parts(SMALL, "down", make_linear))
    assert [(part.rows, part.bytes) for part in parts] == [(n, 2 * (64 * 96 + n * (64 + 96))) for n in PART_ROWS]
    assert len(parts[0].copies) == 3
    assert time_part(parts[0], WallClock(), "cpu", 3).runs == 3


def test_attention_moves_the_keys_and_values_of_its_context() -> None:
    """Keys and values of each token once, queries in and results out."""
    parts = list(attention_parts(SMALL, 100))
    assert [part.bytes for part in parts] == [2 * ((100 + n) * 2 * 2 * 32 + 2 * n * 4 * 32) for n in PART_ROWS]
    assert all(bool(torch.isfinite(torch.as_tensor(part.copies[0]())).all()) for part in parts)


def test_products_are_summed_over_a_step_and_compared_with_the_librarys() -> None:
    """A layer's count as often as there are layers, the head once; what has no twin does not count."""
    micros = {"qkv": 3, "qkv, library": 2, "head": 10, "head, library": 20, "norm": 99}
    parts = [PartTime(name, 1, 1, Timing(t * 1e-6, 0, 0, 1)) for name, t in micros.items()]
    assert over_library(parts, 5) == {1: pytest.approx((5 * 3 + 10) / (5 * 2 + 20))}
    assert over_library(parts[:1], 5) == {}


def test_the_table_shows_the_share_of_the_bandwidth() -> None:
    """1 MB in 1 ms is half of 2 GB/s; a number of rows that was not measured is dashes."""
    grid = parts_table([PartTime("down", 1, 10**6, Timing(1e-3, 9e-4, 2e-3, 5))], 2e9)
    assert grid.rows == [["down", "1", "1000.00 [900.00-2000.00]", "0.50", "-", "-", "-"]]
