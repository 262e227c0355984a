import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.kernels.walk import walk


def test_no_draft_gives_the_plain_sample():
    """Without nodes the root's sample is the bonus token."""
    assert walk([], [], 0, [7]) == ([], 7)


def test_chain():
    """A chain is accepted up to its first wrong token; the sample there is the bonus token."""
    parents = [-1, 0, 1]
    assert walk([4, 5, 6], parents, 3, [4, 5, 6, 9]) == ([0, 1, 2], 9)
    assert walk([4, 5, 6], parents, 3, [4, 5, 8, 9]) == ([0, 1], 8)
    assert walk([4, 5, 6], parents, 3, [3, 5, 6, 9]) == ([], 3)


def test_tree():
    """The walk follows the sibling that carries the sampled token, into its own subtree only."""
    tokens, parents = [4, 5, 6, 6, 7], [-1, -1, 0, 1, 3]
    assert walk(tokens, parents, 5, [5, 0, 6, 0, 7, 8]) == ([1, 3, 4], 8)
    assert walk(tokens, parents, 5, [4, 6, 0, 2, 0, 0]) == ([0, 2], 2)


def test_equal_siblings():
    """Of two siblings with the same token the first counts, with its subtree."""
    assert walk([4, 4, 5], [-1, -1, 1], 3, [4, 5, 5, 9]) == ([0], 5)


def test_preallocated_arrays():
    """Nodes from n on do not exist, whatever the buffers hold."""
    tokens, parents = np.array([4, 5, 6, 7]), np.array([-1, 0, 1, 2])
    assert walk(tokens, parents, 2, [4, 5, 6, 7, 8]) == ([0, 1], 6)
    accepted, bonus = walk(tokens, parents, 1, [4, 5])
    assert type(bonus) is int
    assert all(type(node) is int for node in accepted)


@st.composite
def _draws(draw):
    n = draw(st.integers(0, 12))
    tokens = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    parents = [draw(st.integers(-1, i - 1)) for i in range(n)]
    return tokens, parents, draw(st.lists(st.integers(0, 2), min_size=n + 1, max_size=n + 1))


@settings(derandomize=True, max_examples=300, deadline=None)
@given(_draws())
def test_same_as_following_children(case):
    """On any tree the one pass equals looking up the children of each node in turn."""
    tokens, parents, sampled = case
    here, accepted = -1, []
    while children := [i for i, p in enumerate(parents) if p == here and tokens[i] == sampled[here + 1]]:
        here = children[0]
        accepted.append(here)
    assert walk(tokens, parents, len(tokens), sampled) == (accepted, sampled[here + 1])
