"""Ragged paged attention in Triton's interpreter: values against torch, rows against themselves."""

from __future__ import annotations

import pytest
import torch

from specproxy.kernels.attention import Span
from specproxy.kernels.ragged_attention import count_splits
from tests.support.ragged import Field, ancestor_words, path_errors


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 64), (6, 2, 64), (8, 2, 128), (8, 1, 96)])
@pytest.mark.parametrize("how", [{}, {"window": 40}, {"softcap": 5.0}, {"sinks": True}])
def test_a_ragged_mix_equals_torch(heads, kv_heads, width, how):
    """A prompt chunk, plain rows, a chain and a tree in one step, with padding behind them."""
    field = Field(heads, kv_heads, width, torch.float32, 40)
    if how.get("sinks"):
        how = {"sinks": torch.linspace(-1, 2, heads)}
    spans = [
        Span(0, 10, 250, field.table(300)),
        Span(10, 1, 64, field.table(100), first=7),
        Span(11, 6, 60, field.table(80)),
        Span(17, 6, 253, field.table(300), ancestor_words([-1, -1, 0, 1, 1])),
    ]
    q = field.queries[:26]
    found, expected = field.attend(spans, 26, q, **how), field.attend(spans, 26, q, reference=True, **how)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert not found[23:].any()


@pytest.mark.parametrize("context", [0, 1, 62, 64, 126, 127, 300, 4094, 5118])
def test_contexts_around_the_borders_of_pages_and_splits(context):
    """Four rows behind contexts of every awkward length."""
    field = Field(2, 1, 64, torch.float32, 90)
    spans = [Span(0, 4, context, field.table(context + 4))]
    q = field.queries[:4]
    torch.testing.assert_close(
        field.attend(spans, 4, q), field.attend(spans, 4, q, reference=True), atol=2e-5, rtol=1e-4
    )


def test_half_precision():
    """float16 operands, sums in float32."""
    field = Field(8, 2, 64, torch.float16, 20)
    spans = [Span(0, 3, 500, field.table(510))]
    q = field.queries[:3]
    torch.testing.assert_close(
        field.attend(spans, 3, q), field.attend(spans, 3, q, reference=True), atol=2e-3, rtol=1e-2
    )


def test_values_may_be_narrower_than_keys():
    """Dv below Dk."""
    field = Field(4, 2, 64, torch.float32, 20, v_width=48)
    spans = [Span(0, 3, 100, field.table(110))]
    found = field.attend(spans, 3, field.queries[:3])
    torch.testing.assert_close(found, field.attend(spans, 3, field.queries[:3], reference=True), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("context", [100, 252])
def test_a_row_has_its_bits_alone_and_among_others(context):
    """The rows of a chain, one a step, all at once, and behind another sequence."""
    field = Field(6, 2, 64, torch.float32, 150)
    table, other = field.table(context + 16), field.table(context + 40)
    q = field.queries[:16]
    together = field.attend([Span(0, 16, context, table)], 16, q)
    beside = field.attend(
        [Span(0, 16, context + 20, other), Span(16, 16, context, table)], 32, torch.cat([field.queries[50:66], q])
    )
    assert torch.equal(beside[16:], together)
    for i in range(16):
        assert torch.equal(field.attend([Span(0, 1, context + i, table)], 1, q[i : i + 1])[0], together[i])


@pytest.mark.parametrize("context", [100, 254])
def test_a_trees_rows_have_the_bits_of_their_paths(context):
    """Each node of a tree equals the end of a chain that holds its path's keys in order."""
    assert path_errors(Field(6, 2, 64, torch.float32, 150), context, [-1, -1, 0, 1, 1, 2, 4]) == []


def test_splits_cover_every_length():
    """The number of splits is the last position's and one."""
    assert [count_splits(n) for n in (1, 256, 257, 4096, 4097, 5120, 5121, 32768)] == [1, 2, 3, 32, 33, 33, 34, 60]
