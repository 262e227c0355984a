"""Forms of draft trees, and where their nodes stand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from specproxy.drafters.forms import Form, chain, drafted_at, likeliest, run_of, verified_at

RATES = (0.75, 0.14)


def _form(levels: int, nodes: int, width: int) -> Form:
    return likeliest(lambda _, rank: RATES[rank], levels, nodes, width)


@given(st.integers(1, 7), st.integers(1, 40), st.integers(1, 2))
def test_forms_are_trees(levels: int, nodes: int, width: int) -> None:
    """Parents stand before children, ranks of siblings differ, no level is too deep, no node is likelier than its
    parent."""
    form = _form(levels, nodes, width)
    assert form.depth <= levels
    assert len(form.parents) <= nodes
    assert len(set(zip(form.parents, form.ranks, strict=True))) == len(form.parents)
    for node, (parent, rank, level) in enumerate(form.nodes):
        assert parent < node
        assert rank < width
        assert level == (0 if parent < 0 else form.levels[parent] + 1)
    if nodes >= levels and width == 1:
        assert form == chain(levels)


def test_the_likeliest_paths() -> None:
    """By hand: with these rates the fifth and seventh nodes are second guesses."""
    form = _form(4, 7, 2)
    assert form.parents == (-1, 0, 1, 2, -1, 0, 4)
    assert form.ranks == (0, 0, 0, 0, 1, 1, 0)
    assert form.inner == ((0, 4), (1,), (2,))
    assert form.paths[6] == (4, 6)
    assert not form.is_chain
    assert (form.depth, form.width) == (4, 2)


@given(st.integers(1, 7), st.integers(1, 40))
def test_every_row_reads_its_own_path(levels: int, nodes: int) -> None:
    """The slots of a node's path are those of its ancestors and itself, in the target's step and in the drafter's."""
    form = _form(levels, nodes, 2)
    for node, spot in enumerate(verified_at(form)[1:]):
        slots = spot.path or tuple(range(node + 2))
        assert slots == (0, *(one + 1 for one in form.paths[node]))
        assert spot.order == slots[-1]
        assert spot.depth == len(slots) - 1
    ran: dict[int, int] = {}
    for nodes_of, spots in zip(form.inner, drafted_at(form), strict=True):
        for node, spot in zip(nodes_of, spots, strict=True):
            ran[node] = spot.order
            slots = spot.path or tuple(range(1, spot.order + 1))
            assert slots == tuple(ran[one] for one in form.paths[node])
            assert spot.depth == len(slots)
    assert sorted(ran.values()) == list(range(1, len(ran) + 1))


def test_a_chain_stands_in_order() -> None:
    """No row of a chain has a path of its own."""
    assert verified_at(chain(3)) == run_of(0, 4)
    assert drafted_at(chain(3)) == [(run_of(1, 1)[0]._replace(start=1),), (run_of(2, 1)[0]._replace(start=1),)]
