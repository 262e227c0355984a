"""KV of accepted tree nodes moves down, in Triton's interpreter."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.kernels.compact import Planes, compact, compact_reference
from specproxy.kernels.paged import KVBuffers, LayerShape

PAGE = 16
SHAPES = (LayerShape(2, 24, 24), LayerShape(1, 32, 16))


def _buffers(dtype: torch.dtype = torch.float32) -> KVBuffers:
    """Every number in it is another one (as far as the type goes)."""
    kv = KVBuffers.allocate(SHAPES, 20, PAGE, dtype, "cpu")
    for i, layer in enumerate(kv.layers):
        layer.copy_(torch.randn(layer.shape, generator=torch.Generator().manual_seed(i)))
    return kv


def _paths(rng: random.Random, lanes: int, nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Accepted paths: ascending nodes, -1 behind."""
    paths = [sorted(rng.sample(range(nodes), rng.randint(0, nodes))) for _ in range(lanes)]
    accepted = torch.tensor([path + [-1] * (nodes - len(path)) for path in paths])
    return accepted, torch.tensor([len(path) for path in paths])


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([1, 5, 16, 63]), st.sampled_from([torch.float32, torch.float16]))
def test_paths_move_down(seed, nodes, dtype):
    """All lanes, layers and planes end as a copy of rows through a buffer in between leaves them; no other number
    changes. Layers differ in heads and widths, and paths cross pages."""
    rng = random.Random(seed)
    accepted, count = _paths(rng, 3, nodes)
    pages = rng.sample(range(2, 20), 18)
    tables = torch.tensor([pages[:6], pages[6:12], pages[12:]], dtype=torch.int32)
    root = torch.tensor([rng.randint(0, 6 * PAGE - nodes - 1) for _ in range(3)])
    found, expected = _buffers(dtype), _buffers(dtype)
    compact(Planes(found), tables, root, accepted, count)
    compact_reference(expected, tables, root, accepted, count)
    for x, y in zip(found.layers, expected.layers, strict=True):
        assert torch.equal(x, y)


def test_every_place_is_left_and_taken():
    """The path 1, 2, 3, ...: each node moves onto the one before it, which must have been read by then."""
    kv = _buffers()
    before = [layer.clone() for layer in kv.layers]
    accepted = torch.tensor([[*range(1, 31), -1]])
    compact(Planes(kv), torch.tensor([[2, 3, 4]], dtype=torch.int32), torch.tensor([4]), accepted, torch.tensor([30]))
    first = 2 * PAGE + 5
    for old, new in zip(before, kv.layers, strict=True):
        assert torch.equal(new[:, first : first + 30], old[:, first + 1 : first + 31])
        assert torch.equal(new[:, first + 30 :], old[:, first + 30 :])


def test_a_chain_moves_nothing():
    """Where every node stands at its depth, pages are not even looked up: the table leads nowhere."""
    kv = _buffers()
    before = [layer.clone() for layer in kv.layers]
    nowhere = torch.full((1, 3), 2**30, dtype=torch.int32)
    compact(Planes(kv), nowhere, torch.tensor([4]), torch.tensor([[0, 1, 2, -1]]), torch.tensor([3]))
    assert all(torch.equal(x, y) for x, y in zip(before, kv.layers, strict=True))


def test_wrong_types_are_named():
    """64-bit tables and a count for another number of lanes are errors that say what was expected."""
    planes, one = Planes(_buffers()), torch.tensor([1])
    with pytest.raises(ValueError, match=r"tables \[1, 3\] torch.int64; expected \[1, pages\] int32"):
        compact(planes, torch.zeros(1, 3, dtype=torch.int64), one, torch.tensor([[0]]), one)
    with pytest.raises(ValueError, match=r"count \[2\].*expected \[1\]"):
        compact(planes, torch.zeros(1, 3, dtype=torch.int32), one, torch.tensor([[0]]), torch.tensor([1, 1]))
