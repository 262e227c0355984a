"""Which steps are captured: few shapes, into which every step fits."""

from __future__ import annotations

import pytest

from specproxy.engine.capture import step_shapes
from specproxy.engine.runner import GRAPHED_ROWS, NUMERIC, Rules
from specproxy.engine.selftest import CANDIDATES
from specproxy.engine.step_shapes import (
    WIDTHS,
    StepShape,
    block_counts,
    padded_blocks,
    padded_rows,
    short_reach,
    usual_shapes,
)
from specproxy.kernels.ragged_rows import count_blocks

GROUPS = (1, 4, 5, 8, 64)


def test_every_step_fits_a_captured_width() -> None:
    """A step is padded to the next width, by a half at most; above the widest there is none."""
    for rows in range(1, GRAPHED_ROWS + 1):
        width = padded_rows(rows)
        assert rows <= width < 1.5 * rows + 1
        assert width in WIDTHS
    with pytest.raises(ValueError, match="65 rows has no graph"):
        padded_rows(GRAPHED_ROWS + 1)


def test_captured_widths_are_tried_by_the_self_test() -> None:
    """No step runs at a width that the self-test does not try on its own account."""
    assert set(WIDTHS) <= set(CANDIDATES)


@pytest.mark.parametrize("group", GROUPS)
def test_every_mix_of_sequences_fits_its_blocks(group: int) -> None:
    """However rows are cut into sequences, a captured number of blocks holds them, one of few."""
    for rows in WIDTHS:
        counts = block_counts(rows, group)
        assert len(counts) <= 5
        assert list(counts) == sorted(set(counts))
        for lanes in range(1, rows + 1):
            share, more = divmod(rows, lanes)
            needed = count_blocks([share + (i < more) for i in range(lanes)], group)
            chosen = padded_blocks(needed, rows, group)
            assert needed <= chosen
            assert chosen in counts


@pytest.mark.parametrize("max_sequences", [1, 2, 8, 32, 64])
@pytest.mark.parametrize("group", GROUPS)
def test_the_usual_shapes_cover_an_ordinary_run(group: int, max_sequences: int) -> None:
    """Chains of every length in up to so many sequences find their graph among those that are captured at start."""
    shapes = usual_shapes(range(1, 65), (), group, 4096, max_sequences)
    assert len(shapes) == len(set(shapes))
    for lanes in range(1, max_sequences + 1):
        for chain in range(1, 64 // lanes + 1):
            for rest in (0, 1):
                counts = [chain] * lanes
                counts[0] = max(1, chain - rest)
                rows = padded_rows(sum(counts))
                blocks = padded_blocks(count_blocks(counts, group), rows, group)
                assert StepShape(rows, blocks, 4096, False, ()) in shapes


def test_one_sequence_comes_first_and_the_widest_of_it() -> None:
    """Captures that run out of time have the steps of a single user; wide ones first, as they take the most scratch."""
    shapes = usual_shapes(range(1, 65), (3,), 4, 4096, 32)
    assert [shape.rows for shape in shapes[: len(WIDTHS)]] == sorted(WIDTHS, reverse=True)
    assert [shape.blocks for shape in shapes[: len(WIDTHS)]] == [4, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert len(shapes) == 31
    assert all(shape.hidden == (3,) for shape in shapes)


def test_rules_say_which_widths_occur() -> None:
    """One proven width is one width of graphs; without proofs every captured one may occur."""
    fixed = Rules("bitwise-fixed", (16,), 16, 128)
    assert {shape.rows for shape in step_shapes(fixed, (), 4, 4096, 4)} == {16}
    few = Rules("bitwise", (2, 5, 16), 16, 128)
    assert {shape.rows for shape in step_shapes(few, (), 4, 4096, 4)} == {2, 6, 16}
    assert {shape.rows for shape in step_shapes(NUMERIC, (), 4, 4096, 4)} == set(WIDTHS)


def test_short_contexts_end_with_the_model() -> None:
    """The reach of short graphs is 4096, or a page beyond what the model can hold."""
    assert short_reach(8192, 64) == 4096
    assert short_reach(1024, 64) == 1088
