"""Which shapes of steps are captured on a GPU: few, so that all an ordinary run needs can be there at start.

A decode step is padded to a captured one with as many rows or more, and as many blocks of rows or more. Both cost
little: rows share the reading of the weights, and a block without rows is a program that ends at once. What a row
computes does not depend on either (``ragged_attention.py``, ``small_product.py``).

A prompt chunk keeps its rows: its products are the library's, whose bits may depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from specproxy.engine.step import Step
from specproxy.kernels.paged import KEY_BLOCK
from specproxy.kernels.ragged_rows import count_blocks

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Rows that decode steps are captured with."""

BLOCK_FACTOR = 4
"""Between two numbers of blocks that steps of one width are captured with."""

SHORT = 4096
"""Contexts up to here have graphs of their own, with fewer programs that stand by for keys far away."""


class StepShape(NamedTuple):
    """What a graph is captured for. ``reach``: no row sees keys from there on. ``hidden``: states that are wanted.
    ``sampled``: rows that go through the head, named with each step; ``None``: all, as they stand."""

    rows: int
    blocks: int
    reach: int
    trees: bool
    hidden: tuple[int, ...]
    sampled: int | None = None

    @property
    def logits(self) -> int:
        """Rows of logits that the graph gives."""
        return self.rows if self.sampled is None else self.sampled


def shape_of(
    step: Step, width: int, sampled: int | None, hidden: Sequence[int], group: int, reaches: Sequence[int]
) -> StepShape:
    """What ``step`` runs on: as a decode step of ``width`` rows or more where all are sampled, as a chunk of just so
    many where ``sampled`` are. ``reaches``: those there are graphs for."""
    rows = padded_rows(width) if sampled is None else width
    blocks = count_blocks([span.count for span in step.spans], group)
    end = max(span.end for span in step.spans)
    return StepShape(
        rows,
        padded_blocks(blocks, rows, group),
        min(reach for reach in reaches if end <= reach),
        any(span.words is not None for span in step.spans),
        tuple(hidden),
        sampled,
    )


def padded_rows(rows: int) -> int:
    """Rows of the graph that runs a step of ``rows``. Raises ValueError above the widest."""
    for width in WIDTHS:
        if rows <= width:
            return width
    raise ValueError(f"a step of {rows} rows has no graph; expected {WIDTHS[-1]} at most")


def block_counts(rows: int, group: int) -> tuple[int, ...]:
    """Numbers of blocks that steps of ``rows`` are captured with, ascending: from one sequence's to a block a row.
    ``group``: query heads that share a key head."""
    counts, blocks = [], count_blocks([rows], group)
    while blocks < rows:
        counts.append(blocks)
        blocks *= BLOCK_FACTOR
    return (*counts, rows)


def padded_blocks(blocks: int, rows: int, group: int) -> int:
    """Blocks of the graph of ``rows`` that runs a step of so many blocks."""
    return next(count for count in block_counts(rows, group) if blocks <= count)


def short_reach(max_len: int, page_size: int) -> int:
    """Reach of the graphs for contexts up to SHORT."""
    return min(SHORT, full_reach(max_len, page_size))


def full_reach(max_len: int, page_size: int) -> int:
    """Reach of the graphs for all contexts: to the end of a key block, as the padding of a last chunk does."""
    return -(-(max_len + page_size) // KEY_BLOCK) * KEY_BLOCK


def chunk_shapes(
    rows: int, trim: int, sampled: int, hidden: tuple[int, ...], group: int, reach: int
) -> list[StepShape]:
    """Shapes of prompt chunks of ``rows`` and, with ``trim``, of its multiples below, the widest first.
    ``sampled``: how many rows of each go through the head."""
    widths = range(rows, 0, -trim) if trim else (rows,)
    return [StepShape(width, block_counts(width, group)[0], reach, False, hidden, sampled) for width in widths]


def usual_shapes(
    widths: Sequence[int], hidden: tuple[int, ...], group: int, reach: int, max_sequences: int
) -> list[StepShape]:
    """Shapes that an ordinary run needs, those of one sequence first: chains of every one of ``widths``, in contexts
    up to ``reach``, of up to ``max_sequences``. Wide ones stand before narrow ones, which then fit into what those
    took of scratch memory."""
    padded = sorted({padded_rows(width) for width in widths}, reverse=True)
    alone = [StepShape(rows, block_counts(rows, group)[0], reach, False, hidden) for rows in padded]
    together = [
        StepShape(rows, blocks, reach, False, hidden)
        for rows in padded
        for blocks in _reached(rows, group, max_sequences)
    ]
    return [*alone, *(shape for shape in together if shape not in alone)]


def _reached(rows: int, group: int, max_sequences: int) -> Iterator[int]:
    """The counts that so many sequences of ``rows`` together can need."""
    most = min(rows, max_sequences + count_blocks([rows], group) - 1)
    for count in block_counts(rows, group):
        yield count
        if count >= most:
            return
