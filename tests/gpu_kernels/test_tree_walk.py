"""The walk on a GPU, in Triton's interpreter, against the walk on the host."""

from __future__ import annotations

import pytest
import torch

from specproxy.kernels.tree_walk import tree_walk, tree_walk_reference


def _trees(lanes: int, nodes: int, tokens: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Random trees; few distinct tokens, so that paths are long and siblings alike."""
    g = torch.Generator().manual_seed(seed)
    parents = torch.stack([torch.randint(-1, i, (lanes,), generator=g) for i in range(nodes)], 1)
    n = torch.randint(0, nodes + 1, (lanes,), generator=g)
    draw = (torch.randint(tokens, (lanes, nodes + i), generator=g) for i in range(2))
    return next(draw), parents, n, next(draw)


@pytest.mark.parametrize(("nodes", "tokens"), [(1, 2), (7, 2), (8, 1), (60, 2), (60, 3)])
def test_random_trees_equal_the_hosts_walk(nodes, tokens):
    """Accepted nodes, their number and the bonus token are those of the host in trees of every size."""
    trees = _trees(24, nodes, tokens, nodes)
    found, expected = tree_walk(*trees), tree_walk_reference(*trees)
    assert expected.length.max() > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_chain_is_accepted_to_its_end():
    """All nodes of a chain that was sampled exactly, and the token sampled at its last node."""
    tokens = torch.arange(10, 19)[None]
    parents, sampled = torch.arange(-1, 8)[None], torch.arange(10, 20)[None]
    found = tree_walk(tokens, parents, torch.tensor([9]), sampled)
    assert (found.accepted.tolist(), found.length.tolist(), found.bonus.tolist()) == ([list(range(9))], [9], [19])


def test_nodes_behind_a_lanes_own_are_not_looked_at():
    """A lane without nodes gets the token sampled at its root, whatever stands in its row."""
    tokens, parents = torch.full((2, 3), 5), torch.full((2, 3), -1)
    found = tree_walk(tokens, parents, torch.tensor([0, 2]), torch.full((2, 4), 5))
    assert found.accepted.tolist() == [[-1, -1, -1], [0, -1, -1]]
    assert (found.length.tolist(), found.bonus.tolist()) == ([0, 1], [5, 5])


def test_other_shapes_are_errors():
    """Sampled tokens for the nodes alone, without the root's, are refused."""
    nodes = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"sampled .* expected \[2, 4\]"):
        tree_walk(nodes, nodes, torch.zeros(2, dtype=torch.int64), nodes)
