"""Kernels on a card: values against torch, and what only a card can show: bits, races, graphs."""

from __future__ import annotations

import pytest
import torch

from specproxy.kernels.attention import Span
from specproxy.kernels.layer_parts import add_norm, add_norm_reference
from specproxy.kernels.small_product import gated_product, gated_reference, product, product_reference
from tests.support.ragged import Field, path_errors

pytestmark = pytest.mark.gpu

SHAPES = [(6144, 4096), (4096, 4096), (4096, 14336), (128256, 4096), (640, 384), (8192, 384), (384, 1024)]


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").bfloat16()


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_products_rows_are_their_own(n: int, k: int) -> None:
    """A row's bits are the same at every number of rows, run after run, and its values are torch's."""
    x, weight = _random(64, k), _random(n, k, seed=1) * 0.02
    whole = product(x, weight)
    expected = product_reference(x.float(), weight.float())
    assert ((whole.float() - expected).norm() / expected.norm()) < 4e-3
    for rows in (1, 2, 3, 5, 8, 16, 17, 31, 32, 48, 64):
        for start in (0, 64 - rows):
            assert torch.equal(product(x[start : start + rows], weight), whole[start : start + rows])


@pytest.mark.parametrize(("i", "k"), [(14336, 4096), (1024, 384)])
def test_a_gated_products_rows_are_their_own(i: int, k: int) -> None:
    """The same for gate and up in one launch."""
    x, weight = _random(64, k), _random(2 * i, k, seed=1) * 0.02
    whole = gated_product(x, weight)
    expected = gated_reference(x.float(), weight.float())
    assert ((whole.float() - expected).norm() / expected.norm()) < 1e-2
    for rows in (1, 2, 5, 16, 33, 64):
        assert torch.equal(gated_product(x[:rows], weight), whole[:rows])


def test_norms_rows_are_their_own() -> None:
    """Residual and norm, alone and among others, near torch's."""
    x, delta, weight = _random(64, 4096), _random(64, 4096, seed=1), _random(4096, seed=2)
    whole = add_norm(x, delta, weight, 1e-5)
    expected = add_norm_reference(x, delta, weight, 1e-5)
    assert torch.equal(whole.stream, expected.stream)
    torch.testing.assert_close(whole.normed, expected.normed, atol=0.07, rtol=0.01)
    for row in range(0, 64, 9):
        assert torch.equal(
            add_norm(x[row : row + 1], delta[row : row + 1], weight, 1e-5).normed, whole.normed[row:][:1]
        )


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(6, 2, 64), (32, 8, 128), (64, 8, 128)])
@pytest.mark.parametrize("context", [0, 60, 250, 1000, 4090])
def test_attentions_rows_are_their_own(heads: int, kv_heads: int, width: int, context: int) -> None:
    """Rows of a chain alone, together, and beside another sequence; values near float32's."""
    field = Field(heads, kv_heads, width, torch.bfloat16, 200, device="cuda")
    table, other = field.table(context + 70), field.table(context + 90)
    q = field.queries[:64]
    together = field.attend([Span(0, 64, context, table)], 64, q)
    expected = field.attend([Span(0, 64, context, table)], 64, q, reference=True)
    assert ((together - expected).float().norm() / expected.float().norm()) < 1e-2
    for _ in range(5):
        beside = field.attend(
            [Span(0, 40, context + 20, other), Span(40, 24, context, table)],
            64,
            torch.cat([field.queries[100:140], q[:24]]),
        )
        assert torch.equal(beside[40:], together[:24])
    for i in range(0, 64, 7):
        assert torch.equal(field.attend([Span(0, 1, context + i, table)], 1, q[i : i + 1])[0], together[i])


@pytest.mark.parametrize("context", [100, 254, 4094])
def test_a_trees_rows_have_the_bits_of_their_paths(context: int) -> None:
    """Each node of a tree equals the end of its own chain."""
    field = Field(32, 8, 128, torch.bfloat16, 300, device="cuda")
    assert path_errors(field, context, [-1, -1, 0, 1, 1, 2, 4]) == []
