"""Drawing, the walk and the moving of its path on a card: torch's own bits, rows that are their own, graphs."""

from __future__ import annotations

import pytest
import torch

from specproxy.kernels.compact import compact, compact_reference
from specproxy.kernels.draw import draw, draw_reference
from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.kernels.tree_walk import tree_walk, tree_walk_reference
from tests.support.capturing import capture
from tests.support.drawing import CUTS, PLAIN, draw_rows

pytestmark = pytest.mark.gpu

VOCAB = 128256


def _logits(rows: int, width: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return (torch.randn(rows, width, generator=torch.Generator("cuda").manual_seed(seed), device="cuda") * 3).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("width", "vocab"), [(VOCAB, VOCAB), (VOCAB, VOCAB - 5), (8192, 8001), (5, 5)])
def test_plain_rows_have_torchs_bits(dtype: torch.dtype, width: int, vocab: int) -> None:
    """Tokens and scores of the two best are exactly those of the torch forms on the same card."""
    x, rows = _logits(16, width, dtype), draw_rows(16, PLAIN, vocab, device="cuda")
    found, expected = draw(x, rows, 2, cutoffs=False), draw_reference(x, rows, 2)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [VOCAB, 151936, 8192, 1000])
def test_rows_with_cutoffs_have_torchs_bits(dtype: torch.dtype, width: int) -> None:
    """The same with every cut-off; bf16 logits tie at most borders."""
    x, rows = _logits(4 * len(CUTS), width, dtype), draw_rows(4 * len(CUTS), CUTS, width - 3, device="cuda")
    found, expected = draw(x, rows, 2, cutoffs=True), draw_reference(x, rows, 2)
    assert torch.equal(found.scores, expected.scores)
    there = expected.scores.isfinite()
    assert torch.equal(found.tokens[there], expected.tokens[there])


def test_a_reduced_vocabulary_draws_as_its_target() -> None:
    """A drafter's 32000 ids are drawn with the noise of the target's."""
    kept = torch.randperm(VOCAB, device="cuda")[:32000].sort().values
    x, rows = _logits(len(CUTS), 32000), draw_rows(len(CUTS), CUTS, VOCAB, device="cuda")
    found = draw(x, rows, 1, cutoffs=True, ids=kept)
    whole = torch.full((len(CUTS), VOCAB), float("-inf"), device="cuda").index_copy(1, kept, x.float())
    expected = draw_reference(whole, rows, 1)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("cutoffs", [False, True])
def test_a_rows_result_is_its_own(cutoffs: bool) -> None:
    """Alone, among others and run after run."""
    x, rows = _logits(64, VOCAB), draw_rows(64, CUTS if cutoffs else PLAIN, VOCAB, device="cuda")
    together = draw(x, rows, 2, cutoffs=cutoffs)
    for _ in range(5):
        again = draw(x, rows, 2, cutoffs=cutoffs)
        assert torch.equal(again.tokens, together.tokens)
        assert torch.equal(again.scores, together.scores)
    for i in range(0, 64, 5):
        one = rows._replace(lane=rows.lane[i : i + 1], position=rows.position[i : i + 1])
        alone = draw(x[i : i + 1], one, 2, cutoffs=cutoffs)
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.equal(alone.scores[0], together.scores[i])


def test_a_step_can_be_captured() -> None:
    """Draw, walk and moving the path, replayed from one graph over other numbers at the same addresses, ask no host."""
    lanes, nodes, page = 3, 7, 16
    shapes = [LayerShape(8, 128, 128)] * 3 + [LayerShape(2, 96, 64)]
    kv, other = (KVBuffers.allocate(shapes, 20, page, torch.bfloat16, "cuda") for _ in range(2))
    tables = torch.arange(2, 2 + 4 * lanes, dtype=torch.int32, device="cuda").view(lanes, 4)
    root = torch.tensor([13, 0, 30], device="cuda")
    parents = torch.tensor([[-1, -1, 0, 1, 2, 3, 5]] * lanes, device="cuda")
    tokens, n = torch.zeros(lanes, nodes, dtype=torch.int64, device="cuda"), torch.full((lanes,), nodes, device="cuda")
    lane_of = [i // (nodes + 1) for i in range(lanes * (nodes + 1))]
    x, rows = _logits(len(lane_of), VOCAB), draw_rows(len(lane_of), PLAIN[:lanes], VOCAB, lane_of, "cuda")

    def work() -> tuple[torch.Tensor, ...]:
        drawn = draw(x, rows, cutoffs=False)
        found = tree_walk(tokens, parents, n, drawn.tokens.view(lanes, nodes + 1))
        compact(kv, tables, root, found.accepted, found.length)
        return drawn.tokens, *found

    graph, (drawn, *found) = capture(work)
    moved = 0
    for seed in range(5):
        x.copy_(_logits(len(lane_of), VOCAB, seed=seed))
        sampled = draw_reference(x, rows).tokens.view(lanes, nodes + 1)
        tokens.copy_(sampled[:, [0, 0, 1, 2, 3, 4, 6]] if seed else sampled[:, :nodes])
        tokens[:, seed % 2] += seed
        for mine, theirs in zip(kv.layers, other.layers, strict=True):
            mine.normal_()
            theirs.copy_(mine)
        graph.replay()
        expected = tree_walk_reference(tokens, parents, n, sampled)
        compact_reference(other, tables, root, expected.accepted, expected.length)
        assert torch.equal(drawn.view(lanes, nodes + 1), sampled)
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
        assert all(torch.equal(one, two) for one, two in zip(kv.layers, other.layers, strict=True))
        moved += int(expected.length.sum())
    assert moved


@pytest.mark.parametrize("nodes", [1, 7, 60])
def test_random_trees_equal_the_hosts_walk(nodes: int) -> None:
    """Trees of every size, many lanes."""
    g = torch.Generator().manual_seed(nodes)
    parents = torch.stack([torch.randint(-1, i, (64,), generator=g) for i in range(nodes)], 1)
    tokens, sampled = (torch.randint(2, (64, nodes + i), generator=g) for i in range(2))
    trees = (tokens, parents, torch.randint(0, nodes + 1, (64,), generator=g), sampled)
    found, expected = tree_walk(*(t.cuda() for t in trees)), tree_walk_reference(*trees)
    assert all(torch.equal(one.cpu(), two) for one, two in zip(found, expected, strict=True))
