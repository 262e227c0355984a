"""Ragged paged attention on a card: what the interpreter cannot show. Bits, races, and graphs fed with other rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from specproxy.kernels.attention import Scoring, Span
from specproxy.kernels.ragged_attention import RaggedAttention, plan_ragged, ragged_reference
from specproxy.kernels.ragged_rows import RaggedRows, RowShape
from tests.support.capturing import capture
from tests.support.ragged import PAGE, Field, ancestor_words

DEVICE = "cuda"
TREE = [-1, -1, 0, 1, 1, 2, 4]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def _how(name: str, heads: int) -> dict[str, Any]:
    every: dict[str, dict[str, Any]] = {
        "plain": {},
        "window": {"window": 100},
        "softcap": {"softcap": 5.0},
        "sinks": {"sinks": torch.linspace(-1, 2, heads, device=DEVICE)},
    }
    return every[name]


def _copy_path(field: Field, table: list[int], chain: list[int], context: int, path: list[int]) -> None:
    """Make ``chain`` hold the context of ``table`` and behind it the keys of the tree nodes ``path``."""
    old = torch.tensor([*range(context), *(context + j for j in path)])
    new = torch.arange(len(old))
    source, target = (torch.tensor(t)[p // PAGE] * PAGE + p % PAGE for t, p in ((table, old), (chain, new)))
    plane = field.kv.layers[0]
    plane[:, target] = plane[:, source]


@pytest.mark.parametrize("name", ["plain", "window", "softcap", "sinks"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_ragged_mix_equals_torch(name: str, dtype: torch.dtype) -> None:
    """A prompt chunk, plain rows, a chain and a tree in one step, with padding behind them."""
    field = Field(8, 2, 128, dtype, 120, device=DEVICE)
    spans = [
        Span(0, 40, 250, field.table(300)),
        Span(40, 1, 4100, field.table(4200), first=7),
        Span(41, 6, 60, field.table(80)),
        Span(47, 8, 253, field.table(300), ancestor_words(TREE)),
    ]
    q, how = field.queries[:60], _how(name, 8)
    found = field.attend(spans, 60, q, **how)
    expected = field.attend(spans, 60, q, reference=True, **how)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert not found[55:].any()


@pytest.mark.parametrize("width", [64, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_every_width_and_group_is_bitwise_by_row(width: int, group: int) -> None:
    """Rows of a chain have the bits that they have one at a time, whatever a head's width and a group's size."""
    field = Field(2 * group, 2, width, torch.bfloat16, 40, device=DEVICE)
    table, q = field.table(300), field.queries[:24]
    span = [Span(0, 24, 240, table)]
    together = field.attend(span, 24, q)
    torch.testing.assert_close(together, field.attend(span, 24, q, reference=True), atol=2e-2, rtol=2e-2)
    for i in range(24):
        assert torch.equal(field.attend([Span(0, 1, 240 + i, table)], 1, q[i : i + 1])[0], together[i])


@pytest.mark.parametrize("name", ["plain", "window", "softcap", "sinks"])
@pytest.mark.parametrize("context", [0, 1, 63, 64, 100, 254, 1000, 4070, 5100])
def test_a_row_has_its_bits_in_steps_of_every_size(name: str, context: int) -> None:
    """The first rows of a chain in steps of 1 to 64 rows, in front of padding and behind another sequence, 20 times."""
    field = Field(32, 8, 128, torch.bfloat16, 200, device=DEVICE)
    table, other, how = field.table(context + 64), field.table(context + 90), _how(name, 32)
    q, stranger = field.queries[:64], field.queries[100:140]
    together = field.attend([Span(0, 64, context, table)], 64, q, **how)
    for rows in range(1, 65):
        assert torch.equal(field.attend([Span(0, rows, context, table)], rows, q[:rows], **how), together[:rows])
    for repeat in range(20):
        count = 1 + 2 * repeat
        spans = [Span(0, count, context + 20, other), Span(count, 24, context, table)]
        found = field.attend(spans, 64, torch.cat([stranger[:count], q[: 64 - count]]), **how)
        assert torch.equal(found[count : count + 24], together[:24])


@pytest.mark.parametrize("name", ["plain", "window", "sinks"])
@pytest.mark.parametrize("context", [0, 62, 100, 126, 254, 1022, 4090, 4094, 5118])
def test_a_trees_rows_have_the_bits_of_their_paths(name: str, context: int) -> None:
    """Each node of a tree, alone in its step and behind a prompt chunk, equals the end of a chain with its keys."""
    field, how = Field(32, 8, 128, torch.bfloat16, 300, device=DEVICE), _how(name, 32)
    words, table, chain = ancestor_words(TREE), field.table(context + 8), field.table(context + 8)
    q = field.queries[:8]
    tree = field.attend([Span(0, 8, context, table, words)], 8, q, **how)
    spans = [Span(0, 30, 90, field.table(120)), Span(30, 8, context, table, words)]
    rows = torch.cat([field.queries[50:80], q])
    for _ in range(20):
        assert torch.equal(field.attend(spans, 38, rows, **how)[30:], tree)
    for node, word in enumerate(words):
        path = [j for j in range(node + 1) if word >> j & 1]
        _copy_path(field, table, chain, context, path)
        span = Span(0, 1, context + len(path) - 1, chain)
        assert torch.equal(field.attend([span], 1, q[node : node + 1], **how)[0], tree[node])


def test_bits_do_not_depend_on_how_far_keys_may_reach() -> None:
    """A step planned for its own length and one laid out for long contexts, with programs for trees standing by."""
    field = Field(32, 8, 128, torch.bfloat16, 60, device=DEVICE)
    spans, q = [Span(0, 5, 700, field.table(800))], field.queries[:5]
    plan = plan_ragged(spans, torch.zeros(5, dtype=torch.long, device=DEVICE), field.kv, 4)
    planned = plan.attend(field.kv, 0, q, Scoring(128**-0.5))
    for reach in (705, 4096, 32768):
        far = RaggedAttention(plan.rows, reach).attend(field.kv, 0, q, Scoring(128**-0.5))
        assert torch.equal(far, planned)


def test_a_graph_serves_other_rows_than_it_was_captured_with() -> None:
    """One captured launch, fed with chains, trees, fewer rows and longer contexts, gives what a plain launch gives."""
    field = Field(32, 8, 128, torch.bfloat16, 250, device=DEVICE)
    shape, group, scale = RowShape(16, 4, 4, 80), 4, 128**-0.5
    host, rows = RaggedRows.allocate(shape, "cpu"), RaggedRows.allocate(shape, DEVICE)
    q = field.queries[:16].clone()
    plan = RaggedAttention(rows, 80 * PAGE, group=group)
    graph, out = capture(lambda: plan.attend(field.kv, 0, q, Scoring(scale)))
    one, two, far = field.table(400), field.table(400), field.table(4300)
    steps = [
        [Span(0, 16, 120, one)],
        [Span(0, 1, 300, one), Span(1, 8, 254, two, ancestor_words(TREE)), Span(9, 1, 4200, far)],
        [Span(0, 3, 0, two)],
        [Span(0, 8, 4094, far, ancestor_words(TREE)), Span(8, 8, 60, one)],
    ]
    for turn in range(20):
        spans = steps[turn % len(steps)]
        q.copy_(field.queries[turn : turn + 16])
        host.fill(spans, [], field.kv.trash_slot, PAGE, group)
        rows.buffer.copy_(host.buffer)
        graph.replay()
        assert torch.equal(out, field.attend(spans, 16, q))
        expected = ragged_reference(rows, field.kv, 0, q, Scoring(scale))
        torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)


def test_queries_may_be_cut_from_a_wider_product() -> None:
    """Rows of queries that stand with their keys in one tensor are read where they are."""
    field = Field(32, 8, 128, torch.bfloat16, 20, device=DEVICE)
    spans, q = [Span(0, 16, 300, field.table(320))], field.queries[:16]
    wider = torch.cat([q, field.queries[16:32, :8]], 1)
    assert not wider[:, :32].is_contiguous()
    assert torch.equal(field.attend(spans, 16, wider[:, :32]), field.attend(spans, 16, q))


def test_what_a_masked_slot_holds_does_not_matter() -> None:
    """Other finite keys behind a row's last one, in its page and in the pages of padding, leave its bits alone."""
    field = Field(32, 8, 128, torch.bfloat16, 20, device=DEVICE)
    table, q = field.table(300), field.queries[:4]
    spans = [Span(0, 4, 200, table)]
    before = field.attend(spans, 4, q)
    behind = torch.arange(204, 300)
    plane: Tensor = field.kv.layers[0]
    plane[:, torch.tensor(table)[behind // PAGE] * PAGE + behind % PAGE] = 1e4
    plane[:, :PAGE] = -1e4
    assert torch.equal(field.attend(spans, 4, q), before)
