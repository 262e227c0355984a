"""Where the rows of a round stand, in Triton's interpreter, against the torch form."""

from __future__ import annotations

import pytest
import torch

from specproxy.drafters.forms import Spot, drafted_at, likeliest, run_of, verified_at
from specproxy.drafters.lanes import on_device
from specproxy.kernels.place import Places, page_ends_reference, place, place_reference, store_page_ends
from specproxy.kernels.ragged_rows import FAR, TAIL

PAGE, TRASH = 16, 16
TABLES = torch.tensor([[5, 2, 9], [3, 7, 4], [8, 6, 0], [0, 0, 0], [11, 12, 13]], dtype=torch.int32)
TREE = likeliest(lambda _, rank: (0.7, 0.2)[rank], 3, 6, 2)


def _empty(rows: int) -> Places:
    whole = torch.full((rows,), 77)
    return Places(*(whole.int() for _ in range(3)), whole.clone(), whole.int(), torch.full((rows, TAIL), 77).int())


@pytest.mark.parametrize(
    "spots", [run_of(0, 1), run_of(1, 3), run_of(4, 5), verified_at(TREE), drafted_at(TREE)[1]], ids=len
)
def test_place_equals_torch(spots: tuple[Spot, ...]):
    """Lanes that begin anywhere, at page ends too, that have no tokens, fewer than rows, or more than rows; runs and
    trees."""
    base, live = torch.tensor([14, 0, 30, -1, 40]), torch.tensor([6, 2, 2, 0, 1])
    first = torch.tensor([3, 0, 8, 0, 1], dtype=torch.int32)
    found, expected = _empty(5 * len(spots)), _empty(5 * len(spots))
    place(TABLES, base, live, first, on_device(spots, "cpu"), PAGE, TRASH, found)
    place_reference(TABLES, base, live, first, on_device(spots, "cpu"), PAGE, TRASH, expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_rows_stand_in_their_lanes_pages():
    """By hand: three rows over the end of a page, of which the third is none; a lane without a sequence."""
    tables = torch.tensor([[5, 2], [0, 0]], dtype=torch.int32)
    found, spots = _empty(6), on_device(run_of(0, 3), "cpu")
    place(tables, torch.tensor([15, -1]), torch.tensor([2, 0]), torch.zeros(2).int(), spots, PAGE, TRASH, found)
    assert found.positions.tolist() == [15, 16, -1, -1, -1, -1]
    assert found.slots.tolist() == [5 * PAGE + 15, 2 * PAGE, TRASH, TRASH, TRASH, TRASH]
    assert found.turn.tolist() == [15, 16, 0, 0, 0, 0]


def test_rows_of_a_tree_read_their_own_paths():
    """By hand: two children of the root, the second with a child, over the end of a page."""
    spots = (Spot(0, 0), Spot(1, 1), Spot(2, 1, (0, 2)), Spot(3, 2, (0, 2, 3)))
    tables, found = torch.tensor([[5, 2]], dtype=torch.int32), _empty(4)
    place(
        tables, torch.tensor([14]), torch.tensor([4]), torch.zeros(1).int(), on_device(spots, "cpu"), PAGE, TRASH, found
    )
    assert found.positions.tolist() == [14, 15, 15, 16]
    assert found.slots.tolist() == [5 * PAGE + 14, 5 * PAGE + 15, 2 * PAGE, 2 * PAGE + 1]
    assert found.tail_from.tolist() == [FAR, FAR, 14, 14]
    assert found.tails[2, :2].tolist() == [5 * PAGE + 14, 2 * PAGE]
    assert found.tails[3, :3].tolist() == [5 * PAGE + 14, 2 * PAGE, 2 * PAGE + 1]


@pytest.mark.parametrize("width", [24, 1500])
def test_states_at_page_ends_are_stored(width):
    """The state in front of a token that begins a page goes to the page before; others go nowhere."""
    states = torch.randn(6, width, generator=torch.Generator().manual_seed(1)).half()
    turn = torch.tensor([15, 16, 17, 32, 0, 0])
    tables = torch.tensor([[5, 2, 9], [3, 7, 4]], dtype=torch.int32)
    found, expected = torch.zeros(12, width).half(), torch.zeros(12, width).half()
    store_page_ends(states, turn, tables, PAGE, found)
    page_ends_reference(states, turn, tables, PAGE, expected)
    assert torch.equal(found, expected)
    assert torch.equal(found[5], states[1])
    assert torch.equal(found[7], states[3])
    assert found.any(1).nonzero()[:, 0].tolist() == [5, 7]
    with pytest.raises(ValueError, match="as wide as those of the pages"):
        store_page_ends(states, turn, tables, PAGE, found[:, 1:])


def test_columns_of_another_length_are_refused():
    """Every column has a number for each row."""
    zeros, spots = torch.zeros(2, dtype=torch.int64), on_device(run_of(0, 2), "cpu")
    with pytest.raises(ValueError, match="expected 4 in every column"):
        place(TABLES[:2], zeros, zeros, zeros.int(), spots, PAGE, TRASH, _empty(3))
    with pytest.raises(ValueError, match="in every column"):
        place(TABLES[:2], zeros, zeros, zeros.int(), spots, PAGE, TRASH, _empty(4)._replace(turn=zeros))
