"""Ragged paged attention in Triton's interpreter: values against torch, rows against themselves."""

from __future__ import annotations

import pytest
import torch

from specproxy.kernels.attention import Scoring, Span
from specproxy.kernels.lists import FAR as LISTS_FAR
from specproxy.kernels.lists import list_rows
from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.kernels.ragged_attention import RaggedAttention, plan_ragged, ragged_reference
from specproxy.kernels.ragged_kernels import count_splits
from specproxy.kernels.ragged_rows import FAR, RaggedRows, RowShape, count_blocks
from tests.support.ragged import PAGE, Field, ancestor_words, path_errors

SHAPES = [(2, 2, 64), (6, 2, 64), (4, 1, 128), (8, 1, 96), (2, 1, 256)]
HOWS = [{}, {"window": 40}, {"softcap": 5.0}, {"sinks": torch.linspace(-1, 2, 6)}]


@pytest.mark.parametrize(
    ("shape", "how"), [*[(shape, {}) for shape in SHAPES], *[((6, 2, 64), how) for how in HOWS[1:]]]
)
def test_a_ragged_mix_equals_torch(shape, how):
    """A prompt chunk, plain rows, a chain and trees in one step, with padding behind them."""
    heads, kv_heads, width = shape
    field = Field(heads, kv_heads, width, torch.float32, 40)
    spans = [
        Span(0, 10, 122, field.table(140)),
        Span(10, 3, 62, field.table(80), first=7),
        Span(13, 6, 125, field.table(140), ancestor_words([-1, -1, 0, 1, 1])),
        Span(19, 2, 60, field.table(80), ancestor_words([-1, -1, 0, 1])[3:], before=3),
    ]
    q = field.queries[:24]
    found, expected = field.attend(spans, 24, q, **how), field.attend(spans, 24, q, reference=True, **how)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert expected[:21].abs().amax(1).gt(0).all()
    assert not found[21:].any()


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


@pytest.mark.parametrize("page_size", [16, 128])
def test_pages_of_other_sizes(page_size):
    """A key tile is a page, narrow or wide."""
    kv = KVBuffers.allocate([LayerShape(1, 32, 32)], 300 // page_size + 4, page_size, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(5)
    kv.layers[0].copy_(torch.randn(kv.layers[0].shape, generator=generator))
    table = list(range(300 // page_size + 3, 1, -1))
    plan = plan_ragged([Span(0, 3, 250, table)], torch.zeros(3, dtype=torch.long), kv, 2)
    q = torch.randn(3, 2, 32, generator=generator)
    expected = ragged_reference(plan.rows, kv, 0, q, Scoring(0.2))
    torch.testing.assert_close(plan.attend(kv, 0, q, Scoring(0.2)), expected, atol=2e-5, rtol=1e-4)


def test_queries_may_be_cut_from_a_wider_product():
    """Rows of queries that stand with their keys in one tensor are read where they are."""
    field = Field(6, 2, 64, torch.float32, 20)
    spans, q = [Span(0, 5, 100, field.table(110))], field.queries[:5]
    wider = torch.cat([q, torch.full((5, 2, 64), 1e9)], 1)
    assert torch.equal(field.attend(spans, 5, wider[:, :6]), field.attend(spans, 5, q))


@pytest.mark.parametrize("how", [HOWS[0], HOWS[1], HOWS[3]])
def test_a_row_has_its_bits_alone_and_among_others(how):
    """Rows of a chain across a page's and a split's border, one a step, all at once, and behind another sequence."""
    context, field = 122, Field(6, 2, 64, torch.float32, 150)
    table, other = field.table(context + 12), field.table(context + 40)
    q = field.queries[:12]
    together = field.attend([Span(0, 12, context, table)], 12, q, **how)
    rows = torch.cat([field.queries[50:65], q])
    beside = field.attend([Span(0, 15, context + 20, other), Span(15, 12, context, table)], 30, rows, **how)
    assert torch.equal(beside[15:27], together)
    for i in (0, 5, 6, 11):
        assert torch.equal(field.attend([Span(0, 1, context + i, table)], 1, q[i : i + 1], **how)[0], together[i])


@pytest.mark.parametrize("context", [100, 126])
def test_a_trees_rows_have_the_bits_of_their_paths(context):
    """Each node of a tree equals the end of a chain that holds its path's keys in order."""
    assert path_errors(Field(3, 1, 64, torch.float32, 150), context, [-1, -1, 0, 1, 1, 2, 4]) == []


def test_rows_state_what_lists_state():
    """The same spans as lists for code of the CPU: last and first keys, pages and tails agree row by row."""
    words = ancestor_words([-1, -1, 0, 1, 1])
    spans = [
        Span(0, 3, 70, [5, 9]),
        Span(3, 6, 61, [7, 4], words, first=3),
        Span(9, 2, 61, [8, 3], words[4:], before=4),
    ]
    lists = list_rows(spans, 12, PAGE)
    table, last, first, tail_from, tail, pages, tails = torch.tensor_split(lists.numbers, lists.starts[1:])
    rows = RaggedRows.allocate(RowShape(12, count_blocks([3, 6, 2], 4), 3, 2), "cpu")
    rows.fill(spans, list(range(11)), 64, PAGE, 4)
    assert rows.positions[11] == -1
    assert rows.slots.tolist() == [*range(11), 64]
    for row in range(11):
        count = -(-(int(last[row]) + 1) // PAGE)
        assert rows.positions[row] == last[row]
        assert rows.first[row] == first[row]
        assert torch.equal(rows.tables[rows.lanes[row], :count].long(), pages[table[row] :][:count])
        if tail_from[row] == LISTS_FAR:
            assert rows.tail_from[row] == FAR
            continue
        length = int(last[row] - tail_from[row]) + 1
        assert rows.tail_from[row] == tail_from[row]
        assert torch.equal(rows.tails[row, :length].long(), tails[tail[row] :][:length])


def test_splits_cover_every_length():
    """The number of splits is the last position's and one."""
    assert [count_splits(n) for n in (1, 128, 129, 4096, 4097, 5120, 5121, 32768)] == [1, 1, 2, 32, 33, 33, 34, 60]


def test_a_growing_prompt_asks_for_few_kernels():
    """What a kernel is compiled for does not change with every chunk."""
    kv = KVBuffers.allocate([LayerShape(1, 16, 16)], 4, PAGE, torch.float32, "cpu")
    plans = [
        plan_ragged([Span(0, 128, start, [2] * 500)], torch.zeros(128, dtype=torch.long), kv, 4)
        for start in range(0, 32000, 128)
    ]
    assert len({(plan._splits, plan.rows.shape) for plan in plans}) == 6


@pytest.mark.parametrize(
    ("heads", "q", "words"),
    [
        (4, torch.float16, "expected torch.float32"),
        (4, "turned", "one behind the other"),
        (16, None, "groups of at most"),
    ],
)
def test_what_the_kernel_would_misread_is_refused(heads, q, words):
    """Another type than the keys', heads that do not follow one another, more heads a group than blocks allow for."""
    field = Field(heads, 1, 64, torch.float32, 10)
    rows = RaggedRows.allocate(RowShape(2, 1, 1, 1), "cpu")
    queries = field.queries[:2].to(q if isinstance(q, torch.dtype) else torch.float32)
    if q == "turned":
        queries = queries.transpose(0, 1).contiguous().transpose(0, 1)
    with pytest.raises(ValueError, match=words):
        RaggedAttention(rows, 64, group=4).attend(field.kv, 0, queries, Scoring(1.0))
