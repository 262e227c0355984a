"""Which steps are captured: few shapes, into which every step fits."""

from __future__ import annotations

import pytest

from specproxy.engine.capture import step_shapes
from specproxy.engine.runner import GRAPHED_ROWS, NUMERIC, Rules
from specproxy.engine.selftest import CANDIDATES
from specproxy.engine.step import Step, prefill_step
from specproxy.engine.step_shapes import (
    SHORT,
    WIDTHS,
    StepShape,
    block_counts,
    chunk_shapes,
    full_reach,
    padded_blocks,
    padded_rows,
    shape_of,
    short_reach,
    usual_shapes,
)
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.ragged_rows import count_blocks

GROUPS = (1, 4, 5, 8, 64)
PAGE = 64
CHUNK = 128


def chunk_of(start: int, end: int, trim: int) -> Step:
    """The prompt chunk that holds positions ``start`` to ``end``."""
    table = list(range(2, 4 + end // PAGE))
    return prefill_step([7] * end, start - start % CHUNK, start, end, table, KVBuffers([], [], PAGE), CHUNK, trim)


def decode_shapes(rules: Rules) -> list[StepShape]:
    """Shapes of the decode steps that ``rules`` let occur."""
    return [shape for shape in step_shapes(rules, (), 4, 4096, 4) if shape.sampled is None]


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
    assert {shape.rows for shape in decode_shapes(fixed)} == {16}
    few = Rules("bitwise", (2, 5, 16), 16, 128)
    assert {shape.rows for shape in decode_shapes(few)} == {2, 6, 16}
    assert {shape.rows for shape in decode_shapes(NUMERIC)} == set(WIDTHS)


def test_rules_say_which_chunks_occur() -> None:
    """Whole chunks alone where padding rows must stay, else trimmed ones too; the head's rows are a proven width."""
    fixed = step_shapes(Rules("bitwise-fixed", (16,), 16, 128), (3,), 4, 4096, 4)
    assert [shape for shape in fixed if shape.sampled is not None] == [StepShape(128, 8, 4096, False, (3,), 16)]
    trimmed = step_shapes(Rules("bitwise", (2, 5, 16), 16, 128, trim=32), (), 4, 4096, 4)
    assert trimmed[:4] == [StepShape(rows, rows // 16, 4096, False, (), 2) for rows in (128, 96, 64, 32)]
    assert [shape.logits for shape in trimmed[:5]] == [2, 2, 2, 2, 16]


@pytest.mark.parametrize("trim", [0, 16, 32])
@pytest.mark.parametrize("group", GROUPS)
def test_every_chunk_of_a_short_context_is_captured(group: int, trim: int) -> None:
    """Wherever a chunk begins and ends, its own rows and no more are among what is captured at start."""
    reaches = (short_reach(16384, PAGE), full_reach(16384, PAGE))
    captured = chunk_shapes(CHUNK, trim, 1, (), group, reaches[0])
    assert len(captured) == len(set(captured)) == (CHUNK // trim if trim else 1)
    for start in (0, 1, 15, 16, 64, 100, 127, 3 * CHUNK + 33, SHORT - CHUNK):
        for end in range(start + 1, start - start % CHUNK + CHUNK + 1):
            step = chunk_of(start, end, trim)
            shape = shape_of(step, len(step.ids), 1, (), group, reaches)
            assert shape in captured
            assert shape.rows == len(step.ids)
    beyond = chunk_of(SHORT, SHORT + CHUNK, trim)
    assert shape_of(beyond, CHUNK, 1, (), group, reaches) == captured[0]._replace(reach=reaches[1])


def test_no_row_of_a_chunk_reaches_beyond_its_graph() -> None:
    """The padding of a last chunk stands behind the model's last position, and still within what programs there are."""
    for max_len in (1, 63, 64, 65, 127, 128, 129, 193, 1000, 4040, 4095, 4096, 4097, 8192, 8200):
        reaches = (short_reach(max_len, PAGE), full_reach(max_len, PAGE))
        step = chunk_of(max_len - 1, max_len, 0)
        assert step.spans[0].end <= shape_of(step, CHUNK, 1, (), 4, reaches).reach


def test_a_decode_step_is_padded_and_a_chunk_is_not() -> None:
    """The same rows run wider as a decode step, of which all logits are computed."""
    step = Step("decode")
    step.add_chain([7] * 10, 0, [2], PAGE, 0)
    assert shape_of(step, 10, None, [3], 4, (1024, 2048)) == StepShape(12, 1, 1024, False, (3,))
    assert shape_of(step, 10, 1, [3], 4, (1024, 2048)) == StepShape(10, 1, 1024, False, (3,), 1)
    step.add_tree(7, [7, 7], [-1, -1], 1500, list(range(2, 40)), PAGE)
    assert shape_of(step, 13, None, [], 4, (1024, 2048)) == StepShape(16, 4, 2048, True, ())


def test_short_contexts_end_with_the_model() -> None:
    """The reach of short graphs is 4096, or the key block behind what the model can hold."""
    assert short_reach(8192, 64) == 4096
    assert short_reach(1024, 64) == 1152
