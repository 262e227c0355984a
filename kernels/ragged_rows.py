"""The rows of a step as tensors on a device: who reads which keys, in a form that a captured graph can be fed with.

Everything is one buffer of int32 numbers, filled on the host and copied at once; the fields are views of it. The same
facts as ``lists.py`` states, with tables and tails of a fixed width.

Shapes: T rows, NB blocks, B lanes (sequences), P pages of a lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specproxy.kernels.attention import Span

FAR = 2**30
"""A position that no sequence reaches."""

TAIL = 64
"""Keys that can stand elsewhere than in the table's order: as many as a draft tree has nodes."""

TILE_ROWS = 64
"""Rows of one program's tile: query heads that share a key head, times rows of a block."""


@dataclass(frozen=True)
class RowShape:
    """Sizes that a graph is captured for."""

    rows: int
    blocks: int
    lanes: int
    pages: int

    @property
    def parts(self) -> list[tuple[str, tuple[int, ...]]]:
        """Fields in their order."""
        rows, blocks = (self.rows,), (self.blocks,)
        return [
            ("slots", rows),
            ("positions", rows),
            ("first", rows),
            ("lanes", rows),
            ("tail_from", rows),
            ("block_row", blocks),
            ("block_count", blocks),
            ("tables", (self.lanes, self.pages)),
            ("tails", (self.rows, TAIL)),
        ]

    @property
    def numbers(self) -> int:
        """Length of the buffer."""
        return sum(torch.Size(size).numel() for _, size in self.parts)


class RaggedRows:
    """Views of ``buffer`` [numbers] int32.

    ``slots`` [T]: where each row's KV goes. ``positions`` [T]: the last key that a row sees, counted along its own
    path; -1: it attends to nothing and comes out as zeros. ``first`` [T]: keys before this one are not seen. ``lanes``
    [T]: its row of ``tables`` [B, P]. ``tail_from`` [T], ``tails`` [T, TAIL]: keys from there on stand at these slots
    instead; FAR where there are none. ``block_row``, ``block_count`` [NB]: rows of one lane that lie side by side;
    count 0: nothing.
    """

    slots: Tensor
    positions: Tensor
    first: Tensor
    lanes: Tensor
    tail_from: Tensor
    block_row: Tensor
    block_count: Tensor
    tables: Tensor
    tails: Tensor

    def __init__(self, shape: RowShape, buffer: Tensor) -> None:
        self.shape = shape
        self.buffer = buffer
        at = 0
        for name, size in shape.parts:
            count = torch.Size(size).numel()
            setattr(self, name, buffer[at : at + count].view(size))
            at += count

    @classmethod
    def allocate(cls, shape: RowShape, device: torch.device | str, *, pinned: bool = False) -> RaggedRows:
        """Rows that attend to nothing."""
        rows = cls(shape, torch.zeros(shape.numbers, dtype=torch.int32, device=device, pin_memory=pinned))
        rows.clear()
        return rows

    def clear(self) -> None:
        """No row attends to anything."""
        self.buffer.zero_()
        self.positions.fill_(-1)
        self.tail_from.fill_(FAR)

    def fill(self, spans: Sequence[Span], slots: Sequence[int], trash: int, page_size: int, group: int) -> None:
        """The rows of ``spans`` (on the host). ``slots``: of real rows; the others write to ``trash``. ``group``: query
        heads of a key head."""
        self.clear()
        self.slots.fill_(trash)
        self.slots[: len(slots)] = torch.tensor(slots, dtype=torch.int32)
        lanes: dict[int, int] = {}
        blocks: list[tuple[int, int]] = []
        for span in spans:
            lane = lanes.setdefault(id(span.table), len(lanes))
            pages = span.table[: -(-span.end // page_size)]
            self.tables[lane, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
            here = slice(span.start, span.start + span.count)
            self.lanes[here], self.first[here] = lane, span.first
            start = span.context + span.before
            self.positions[here] = torch.arange(start, start + span.count, dtype=torch.int32)
            if span.words is not None:
                self._fill_tree(span, page_size)
            most = max(1, TILE_ROWS // group)
            blocks += [(at, min(most, here.stop - at)) for at in range(here.start, here.stop, most)]
        if blocks:
            packed = torch.tensor(blocks, dtype=torch.int32)
            self.block_row[: len(blocks)], self.block_count[: len(blocks)] = packed[:, 0], packed[:, 1]

    def _fill_tree(self, span: Span, page_size: int) -> None:
        """Each row's path: how far it reaches, and where its keys stand if they are not the table's next ones."""
        words = span.words or ()
        for i, word in enumerate(words):
            nodes = [j for j in range(span.before + i + 1) if word >> j & 1]
            row = span.start + i
            self.positions[row] = span.context + len(nodes) - 1
            if len(nodes) <= nodes[-1]:
                at = [span.context + j for j in nodes]
                path = [span.table[p // page_size] * page_size + p % page_size for p in at]
                self.tail_from[row] = span.context
                self.tails[row, : len(path)] = torch.tensor(path, dtype=torch.int32)


def count_blocks(counts: Sequence[int], group: int) -> int:
    """Blocks that spans of so many rows take."""
    most = max(1, TILE_ROWS // group)
    return sum(-(-count // most) for count in counts)
