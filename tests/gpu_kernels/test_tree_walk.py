"""The walk on the device against the one on the host, in Triton's interpreter."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.kernels.tree_walk import tree_walk, tree_walk_reference
from specproxy.kernels.walk import walk

Lane = tuple[list[int], list[int], int, list[int]]


def _lane(rng: random.Random, most: int, words: int) -> Lane:
    """A draft over few words, so that paths are long and siblings carry the same token now and then."""
    n = rng.randint(0, most)
    parents = [rng.randint(max(-1, i - 3), i - 1) for i in range(n)] + [rng.randint(-1, most) for _ in range(n, most)]
    return [rng.randrange(words) for _ in range(most)], parents, n, [rng.randrange(words) for _ in range(most + 1)]


def _tensors(lanes: list[Lane]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, parents, n, sampled = zip(*lanes, strict=True)
    return torch.tensor(tokens), torch.tensor(parents), torch.tensor(n), torch.tensor(sampled)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 7, 8, 63]), st.integers(1, 4))
def test_every_lane_walks_as_on_the_host(seed, most, words):
    """Trees of all sizes, empty ones and repeated siblings included, give the host's path, its length and its bonus."""
    rng = random.Random(seed)
    lanes = [_lane(rng, most, words) for _ in range(5)]
    found = tree_walk(*_tensors(lanes))
    for lane, (accepted, count, bonus) in zip(lanes, zip(*(x.tolist() for x in found), strict=True), strict=True):
        expected = walk(*lane)
        assert accepted == expected.accepted_nodes + [-1] * (most - len(expected.accepted_nodes))
        assert (count, bonus) == (len(expected.accepted_nodes), expected.bonus)


def test_a_whole_chain_is_accepted():
    """63 nodes in a line that all carry what was sampled: the bonus is the last sampled token."""
    sampled = torch.arange(100, 164)[None]
    found = tree_walk(sampled[:, :-1].contiguous(), torch.arange(-1, 62)[None], torch.tensor([63]), sampled)
    assert found.accepted.tolist() == [list(range(63))]
    assert (found.count.item(), found.bonus.item()) == (63, 163)


def test_the_reference_states_the_same():
    """The form that serves devices without kernels gives the same tensors."""
    rng = random.Random(1)
    tensors = _tensors([_lane(rng, 16, 2) for _ in range(20)])
    for x, y in zip(tree_walk(*tensors), tree_walk_reference(*tensors), strict=True):
        assert torch.equal(x, y)


def test_wrong_shapes_are_named():
    """One sampled token too few, and 32-bit parents, are errors that say what was expected."""
    tokens, parents, n, sampled = _tensors([_lane(random.Random(0), 4, 2)])
    with pytest.raises(ValueError, match=r"sampled \[1, 4\].*expected \[1, 5\] int64"):
        tree_walk(tokens, parents, n, sampled[:, :4].contiguous())
    with pytest.raises(ValueError, match=r"parents \[1, 4\] torch.int32"):
        tree_walk(tokens, parents.int(), n, sampled)
