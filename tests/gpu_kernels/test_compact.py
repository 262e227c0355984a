"""Accepted paths that move together, in Triton's interpreter, against slots copied one by one."""

from __future__ import annotations

import pytest
import torch

from specproxy.kernels.compact import compact, compact_reference
from specproxy.kernels.paged import KVBuffers, LayerShape

PAGE = 16
SHAPES = [LayerShape(2, 64, 64), LayerShape(1, 48, 32), LayerShape(2, 64, 64), LayerShape(2, 64, 48)]


def _filled(dtype: torch.dtype) -> KVBuffers:
    kv = KVBuffers.allocate(SHAPES, 20, PAGE, dtype, "cpu")
    for i, layer in enumerate(kv.layers):
        layer.copy_(torch.randn(layer.shape, generator=torch.Generator().manual_seed(i)))
    return kv


def _expected(kv: KVBuffers, table: list[int], root: int, path: list[int]) -> None:
    """The path moved by slot, depth by depth."""
    for depth, node in enumerate(path):
        moved = [table[p // PAGE] * PAGE + p % PAGE for p in (root + 1 + node, root + 1 + depth)]
        kv.copy_slots(moved[:1], moved[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_paths_move_in_every_layer_and_plane(dtype):
    """Lanes with long, short, straight and empty paths over borders of pages; what is not theirs stays as it was."""
    found, expected = _filled(dtype), _filled(dtype)
    tables = [[5, 3, 9, 12], [7, 2, 4, 6], [10, 11, 13, 14], [15, 16, 17, 18]]
    roots = [14, 0, 30, 7]
    paths = [[0, 2, 3, 5, 6, 8, 9, 10, 11, 12, 20, 21, 22, 23, 24, 30], [3, 9], [0, 1, 2], []]
    accepted = torch.tensor([path + [-1] * (31 - len(path)) for path in paths])
    compact(
        found,
        torch.tensor(tables, dtype=torch.int32),
        torch.tensor(roots),
        accepted,
        torch.tensor([len(path) for path in paths]),
    )
    for table, root, path in zip(tables, roots, paths, strict=True):
        _expected(expected, table, root, path)
    before = _filled(dtype)
    for one, other, old in zip(found.layers, expected.layers, before.layers, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, old)


def test_nothing_accepted_moves_nothing():
    """Where no lane accepted a node, both forms leave everything as it is."""
    kv, before, none = _filled(torch.float32), _filled(torch.float32), torch.full((2, 3), -1)
    arguments = torch.tensor([[2, 3], [4, 5]], dtype=torch.int32), torch.tensor([3, 9]), none, torch.tensor([0, 0])
    for form in (compact, compact_reference):
        form(kv, *arguments)
        assert all(torch.equal(one, old) for one, old in zip(kv.layers, before.layers, strict=True))


def test_other_types_are_errors():
    """Tables of int64 are refused by name."""
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"tables .* expected \[1, 4\] torch.int32"):
        compact(_filled(torch.float32), torch.zeros(1, 4, dtype=torch.int64), one, one[:, None], one)
