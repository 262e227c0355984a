"""Where the rows of a round stand, in Triton's interpreter, against the torch form."""

from __future__ import annotations

import pytest
import torch

from specproxy.kernels.place import Places, page_ends_reference, place, place_reference, store_page_ends

PAGE, TRASH = 16, 16


def _empty(rows: int) -> Places:
    whole = torch.full((rows,), 77)
    return Places(whole.int(), whole.int(), whole.int(), whole.clone())


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("skip", [0, 1, 4])
def test_place_equals_torch(count, skip):
    """Lanes that begin anywhere, at page ends too, that have no tokens, fewer than rows, or more than rows."""
    tables = torch.tensor([[5, 2, 9], [3, 7, 4], [8, 6, 0], [0, 0, 0], [11, 12, 13]], dtype=torch.int32)
    base, live = torch.tensor([14, 0, 30, -1, 40]), torch.tensor([6, 2, 2, 0, 1])
    first = torch.tensor([3, 0, 8, 0, 1], dtype=torch.int32)
    found, expected = _empty(5 * count), _empty(5 * count)
    place(tables, base, live, first, skip, PAGE, TRASH, found)
    place_reference(tables, base, live, first, skip, PAGE, TRASH, expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_rows_stand_in_their_lanes_pages():
    """By hand: three rows over the end of a page, of which the third is none; a lane without a sequence."""
    tables = torch.tensor([[5, 2], [0, 0]], dtype=torch.int32)
    found = _empty(6)
    place(tables, torch.tensor([15, -1]), torch.tensor([2, 0]), torch.zeros(2).int(), 0, PAGE, TRASH, found)
    assert found.positions.tolist() == [15, 16, -1, -1, -1, -1]
    assert found.slots.tolist() == [5 * PAGE + 15, 2 * PAGE, TRASH, TRASH, TRASH, TRASH]
    assert found.turn.tolist() == [15, 16, 0, 0, 0, 0]


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
    """Every column has a number for each row, and every lane as many rows."""
    tables, zeros = torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="expected as many in each"):
        place(tables, zeros, zeros, zeros.int(), 0, PAGE, TRASH, _empty(3))
    with pytest.raises(ValueError, match="in every column"):
        place(tables, zeros, zeros, zeros.int(), 0, PAGE, TRASH, _empty(4)._replace(turn=torch.zeros(2).long()))
