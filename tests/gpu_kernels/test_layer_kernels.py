"""Products and the parts of a layer against torch, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from specproxy.kernels.layer_parts import (
    HeadNorms,
    Turn,
    add_norm,
    add_norm_reference,
    rotate_and_store,
    rotate_and_store_reference,
)
from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.kernels.small_product import Tiling, gated_product, gated_reference, product, product_reference


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("rows", [1, 3, 17, 64])
@pytest.mark.parametrize("slices", [1, 2, 4])
def test_product_equals_torch(rows, slices):
    """Products with and without cut inputs give torch's results within rounding, bias included, in ragged tiles too."""
    x, weight, bias = _random(rows, 256), _random(200, 256, seed=1), _random(200, seed=2)
    for b in (None, bias):
        found = product(x, weight, b, Tiling(64, 64, slices, 2))
        expected = product_reference(x.double(), weight.double(), None if b is None else b.double())
        torch.testing.assert_close(found.double(), expected, atol=4e-2, rtol=2e-3)


def test_product_of_odd_widths():
    """An input width that no slice divides is summed whole, its end masked."""
    x, weight = _random(2, 200), _random(70, 200, seed=1)
    expected = product_reference(x.double(), weight.double())
    torch.testing.assert_close(product(x, weight, None, Tiling(64, 64, 2, 2)).double(), expected, atol=4e-2, rtol=2e-3)


@pytest.mark.parametrize("rows", [1, 5, 33])
def test_gated_product_equals_torch(rows):
    """silu(gate) * up in one launch equals the products and the pointwise part one by one."""
    x, weight = _random(rows, 128), _random(2 * 100, 128, seed=1)
    torch.testing.assert_close(
        gated_product(x, weight).float(), gated_reference(x, weight).float(), atol=0.5, rtol=5e-3
    )


def test_product_rows_do_not_see_each_other():
    """A row's bits are the same alone and among others, in every number of rows."""
    x, weight = _random(64, 256), _random(96, 256, seed=1)
    whole = product(x, weight, None, Tiling(64, 64, 2, 2))
    for rows in (1, 2, 16, 31):
        assert torch.equal(product(x[:rows], weight, None, Tiling(64, 64, 2, 2)), whole[:rows])


def test_product_refuses_what_it_is_not_for():
    """More rows than it serves, or a weight of another width, are errors."""
    with pytest.raises(ValueError, match="expected"):
        product(_random(65, 64), _random(64, 64))
    with pytest.raises(ValueError, match="expected"):
        product(_random(2, 64), _random(64, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [384, 192, 256])
def test_add_norm_equals_torch(dtype, width):
    """The stream is the exact sum, the norm torch's within a rounding."""
    x, delta, weight = (_random(5, width, seed=i, dtype=dtype) for i in range(3))
    weight = weight[0].contiguous()
    for d in (None, delta):
        found, expected = add_norm(x, d, weight, 1e-5), add_norm_reference(x, d, weight, 1e-5)
        assert torch.equal(found.stream, expected.stream)
        torch.testing.assert_close(
            found.normed, expected.normed, atol=2e-3 if dtype == torch.float16 else 1e-6, rtol=2e-3
        )


@pytest.mark.parametrize(("norms", "v_dim"), [(False, 64), (True, 64), (False, 48)])
def test_rotate_and_store_equals_torch(norms, v_dim):
    """Queries, stored keys and stored values equal the torch form's, and what is not finite is stored finite."""
    heads, kv_heads, width, rows = 6, 2, 64, 5
    shape = LayerShape(kv_heads, width, v_dim)
    buffers = [KVBuffers.allocate([shape], 4, 64, torch.float32, "cpu") for _ in range(2)]
    qkv = _random(rows, (heads + kv_heads) * width + kv_heads * v_dim, dtype=torch.float32)
    qkv[1, -1], qkv[2, -2] = float("nan"), float("inf")
    turn = Turn(_random(100, width, seed=3, dtype=torch.float32), _random(100, width, seed=4, dtype=torch.float32))
    head_norms = HeadNorms(torch.rand(width), torch.rand(width), 1e-6) if norms else None
    positions, slots = torch.tensor([3, 4, 99, 0, 7]), torch.tensor([130, 131, 200, 140, 64])
    found = rotate_and_store(qkv.clone(), positions, slots, turn, buffers[0], 0, heads, head_norms)
    expected = rotate_and_store_reference(qkv.clone(), positions, slots, turn, buffers[1], 0, heads, head_norms)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(buffers[0].layers[0], buffers[1].layers[0], atol=1e-5, rtol=1e-5)
    assert buffers[0].layers[0].isfinite().all()
