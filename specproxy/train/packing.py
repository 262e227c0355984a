"""Documents into rows of fixed length: several to a row, none split, none seeing another.

Shapes: B rows, T tokens a row, S starts a row. A document is a prompt and its answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OPEN_ROWS = 16
"""Rows that are filled at a time: enough to leave few gaps, few enough to keep the order nearly random."""


STARTS = 64
"""Starts are padded to a multiple of this, as every new size costs a GPU's allocator a search."""


@dataclass(frozen=True)
class Document:
    """``ids``: prompt and answer. ``start``: the first token that counts for the loss; never 0, which nothing
    predicts."""

    ids: tuple[int, ...]
    start: int
    source: str


@dataclass(frozen=True)
class Batch:
    """Packed rows, all [B, T]: ``ids``; ``positions`` within the document; ``documents`` int64, -1 where nothing is;
    ``trained`` bool: tokens that count for the loss.

    ``starts`` [B, S] int64: positions from which a drafter has something to guess, as the next token and the one after
    it count; S is the longest row's number, in steps of ``STARTS``, and ``usable`` [B, S] bool tells which are real.
    """

    ids: Tensor
    positions: Tensor
    documents: Tensor
    trained: Tensor
    starts: Tensor
    usable: Tensor

    @classmethod
    def of(cls, ids: Tensor, positions: Tensor, documents: Tensor, trained: Tensor) -> Batch:
        """With its starts found, on the CPU: on a GPU their number would have to be waited for."""
        none = torch.zeros(0, dtype=torch.int64)
        bare = cls(ids, positions, documents, trained, none, none)
        wanted = bare.counted(1) & bare.counted(2)
        size = max(1, int(wanted.sum(1).max()))
        size = min(ids.shape[1], -(-size // STARTS) * STARTS)
        starts = (~wanted).to(torch.int8).argsort(dim=1, stable=True)[:, :size]
        return cls(ids, positions, documents, trained, starts, wanted.gather(1, starts))

    def to(self, device: str) -> Batch:
        """The same on another device."""
        moved = (self.ids, self.positions, self.documents, self.trained, self.starts, self.usable)
        return Batch(*(x.to(device, non_blocking=True) for x in moved))

    def mask(self, places: Tensor | None = None) -> Tensor:
        """Who sees whom, bool [B, 1, T, T], or of ``places`` [B, S] alone [B, 1, S, T]: the same document, not the
        future. Padding sees padding, as a row of nothing would make softmax NaN."""
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        if places is None:
            places = columns.expand_as(self.ids)
        same = pick(self.documents, places)[:, :, None] == self.documents[:, None, :]
        return (same & (columns <= places[:, :, None]))[:, None]

    def counted(self, ahead: int) -> Tensor:
        """Positions t [B, T] bool whose token t + ``ahead`` is of the same document and counts for the loss."""
        same = self.documents == shift(self.documents, ahead, -2)
        return same & shift(self.trained, ahead, False)


def shift(values: Tensor, by: int, fill: int | bool = 0) -> Tensor:
    """values [B, T, ...] moved left: position t holds what stood at t + ``by``, ``fill`` at the end."""
    if by == 0:
        return values
    end = torch.full_like(values[:, :by], fill)
    return torch.cat([values[:, by:], end], 1)


def batches(
    documents: Sequence[Document], *, length: int, rows: int, seed: int, start: int = 0, shuffle: bool = True
) -> Iterator[Batch]:
    """Batches of ``rows`` rows for ever, epoch after epoch, each in an order of its own that ``seed`` decides.

    ``start``: how many to leave out at the front, so that a run can go on where it stopped. Without ``shuffle``, one
    epoch in the given order, its last batch perhaps smaller.
    """
    skipped = 0
    for epoch in itertools.count() if shuffle else range(1):
        order = torch.arange(len(documents))
        if shuffle:
            order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        packed = _pack([documents[i] for i in order.tolist()], length)
        if shuffle:
            mixed = torch.randperm(len(packed), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
            packed = [packed[i] for i in mixed]
        for first in range(0, len(packed), rows):
            if skipped < start:
                skipped += 1
                continue
            yield _batch(packed[first : first + rows], length)


def count_rows(documents: Sequence[Document], length: int) -> int:
    """How many rows an epoch has, about: another order can need one more or less."""
    return len(_pack(documents, length))


def _pack(documents: Sequence[Document], length: int) -> list[list[Document]]:
    """First fit into the open rows; the fullest row is closed when there are too many."""
    closed: list[list[Document]] = []
    rows: list[tuple[int, list[Document]]] = []
    for document in documents:
        size = min(len(document.ids), length)
        if document.start >= size:
            continue
        for place, (used, members) in enumerate(rows):
            if used + size <= length:
                members.append(document)
                rows[place] = (used + size, members)
                break
        else:
            rows.append((size, [document]))
        if len(rows) > OPEN_ROWS:
            fullest = max(range(len(rows)), key=lambda i: rows[i][0])
            closed.append(rows.pop(fullest)[1])
    return closed + [members for _, members in rows]


def _batch(rows: Sequence[Sequence[Document]], length: int) -> Batch:
    shape = (len(rows), length)
    ids = torch.zeros(shape, dtype=torch.int64)
    positions = torch.zeros(shape, dtype=torch.int64)
    documents = torch.full(shape, -1, dtype=torch.int64)
    trained = torch.zeros(shape, dtype=torch.bool)
    for r, members in enumerate(rows):
        at = 0
        for number, document in enumerate(members):
            size = min(len(document.ids), length)
            ids[r, at : at + size] = torch.tensor(document.ids[:size])
            positions[r, at : at + size] = torch.arange(size)
            documents[r, at : at + size] = number
            trained[r, at + document.start : at + size] = True
            at += size
    return Batch.of(ids, positions, documents, trained)


def pick(values: Tensor, places: Tensor) -> Tensor:
    """values [B, T] or [B, T, X] at places [B, S] -> [B, S] or [B, S, X]. Places behind the end mean the last one."""
    places = places.clamp_max(values.shape[1] - 1)
    if values.dim() == 2:
        return values.gather(1, places)
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))
