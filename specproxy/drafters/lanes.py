"""Sequences in fixed places on the device, for rounds that run without the host: draft, step, draw and walk.

A round reads and writes tensors at fixed addresses, so that it can be captured in a CUDA graph and one round can follow
the other before the host has seen what the first one said. A lane is one sequence; ``engine/rounds.py`` fills lanes
from sequences and reads back what was committed.

Shapes: L lanes, W tokens that a round commits to a lane at most, S width of the target's states that a drafter reads
(concatenated), P pages of a lane, V logits a row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from specproxy.drafters.base import DraftRow
from specproxy.kernels.draw import Drawn, draw
from specproxy.kernels.draw_rows import DrawRows
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.place import Places, place
from specproxy.kernels.ragged_attention import RaggedAttention
from specproxy.kernels.ragged_rows import TILE_ROWS, RaggedRows, RowShape, count_blocks


class LaneShape(NamedTuple):
    """Sizes that a round is captured for. ``states``: S, 0 where no states are read."""

    lanes: int
    most: int
    states: int
    pages: int


class LaneRows(NamedTuple):
    """Rows of all lanes, lane by lane. ``positions`` [T] int64, 0 for rows that are not real; ``plan``: their
    attention, with the slots their keys and values go to."""

    positions: Tensor
    plan: RaggedAttention


class LaneNumbers:
    """What the host fills lanes with, on one device: views of four buffers that are copied whole.

    ``known`` [L] int64: committed tokens. ``fresh`` [L] int64: of them, those that the drafter has yet to take in; they
    stand in ``recent`` [L, W] int64. ``live`` [L] int64: 1 for a lane with a sequence. ``limit`` [L] int64: tokens that
    may be drafted. ``seed``, ``choice`` [L] int64, ``top_k``, ``vocab`` [L] int32, ``temperature``, ``min_p`` [L]
    float32, ``top_p`` [L] float64: as in DrawRows. ``first`` [L] int32: the first slot that the drafter has filled.
    ``tables`` [L, P] int32: pages.
    """

    known: Tensor
    fresh: Tensor
    live: Tensor
    limit: Tensor
    seed: Tensor
    choice: Tensor
    top_k: Tensor
    vocab: Tensor
    first: Tensor
    temperature: Tensor
    min_p: Tensor
    recent: Tensor
    tables: Tensor

    def __init__(self, shape: LaneShape, device: torch.device | str, *, pinned: bool = False) -> None:
        count, most, _, pages = shape

        def zeros(numbers: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(numbers, dtype=dtype, device=device, pin_memory=pinned)

        whole, small = zeros(count * (6 + most), torch.int64), zeros(count * (3 + pages), torch.int32)
        floats, self.top_p = zeros(count * 2, torch.float32), zeros(count, torch.float64)
        self.buffers = (whole, small, floats, self.top_p)
        *columns, recent = whole.split([count] * 6 + [count * most])
        self.known, self.fresh, self.live, self.limit, self.seed, self.choice = columns
        self.recent = recent.view(count, most)
        self.top_k, self.vocab, self.first, tables = small.split([count] * 3 + [count * pages])
        self.tables = tables.view(count, pages)
        self.temperature, self.min_p = floats.split([count] * 2)

    def copy_(self, other: LaneNumbers) -> None:
        """All numbers of ``other``; nothing is waited for."""
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            mine.copy_(theirs, non_blocking=True)


class Lanes:
    """What a round knows of its sequences, on the device.

    ``numbers``: see there; between rounds its ``known``, ``fresh`` and ``recent`` are what the last round committed.
    ``states`` [L, W, S]: the target's states of the positions before those of ``recent``. ``sampling``: of each lane,
    as ``draw`` takes it; its ``lane`` and ``position`` are of one row a lane. ``cutoffs``: whether any lane may use
    one. ``reach``: no position gets there.
    """

    def __init__(self, shape: LaneShape, kv: KVBuffers, dtype: torch.dtype, device: torch.device | str) -> None:
        count, most, states, pages = shape
        self.shape = shape
        self.page_size, self.trash = kv.page_size, kv.trash_slot
        self.cutoffs = False
        self.reach = pages * kv.page_size
        self._device = device
        self.numbers = numbers = LaneNumbers(shape, device)
        self.states = torch.zeros(count, most, states, dtype=dtype, device=device)
        self.sampling = DrawRows(
            lane=torch.arange(count, dtype=torch.int32, device=device),
            position=torch.zeros(count, dtype=torch.int64, device=device),
            temperature=numbers.temperature,
            top_k=numbers.top_k,
            top_p=numbers.top_p,
            min_p=numbers.min_p,
            seed=numbers.seed,
            choice=numbers.choice,
            vocab=numbers.vocab,
        )
        self._zero = torch.zeros(count, dtype=torch.int32, device=device)
        self._greedy = torch.zeros(count, dtype=torch.float32, device=device)
        self._starts = torch.arange(count, dtype=torch.int64, device=device) * most
        self._newest, self._last, self._room = self._starts, numbers.known, numbers.live
        self._rows: dict[tuple[int, int, int], tuple[RaggedRows, Places]] = {}
        self._row_lanes: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def first(self) -> Tensor:
        """The first slot [L] that the drafter has filled."""
        return self.numbers.first

    def begin(self) -> None:
        """What the round's parts share: where each lane's last token stands, and how many rows may follow."""
        numbers = self.numbers
        self._newest = self._starts + (numbers.fresh - 1).clamp_(min=0)
        self._last = numbers.known - 1
        self._room = (numbers.limit + 1) * numbers.live

    @property
    def newest_rows(self) -> Tensor:
        """Which row [L] of ``entries`` is each lane's last real one, int64."""
        return self._newest

    def newest(self, x: Tensor) -> Tensor:
        """Of x [L * W, ...], rows of ``entries``, each lane's last real one [L, ...]."""
        return x.index_select(0, self._newest)

    @property
    def tokens(self) -> Tensor:
        """Ids [L * W] of ``recent``; 0 where there was none."""
        return self.numbers.recent.flatten().clamp(min=0)

    def entries(self, group: int, first: Tensor | None = None) -> LaneRows:
        """Rows [L * W] of the recent tokens, at their positions. ``group``: query heads that share a key head;
        ``first`` [L]: keys before it are not seen."""
        numbers, most = self.numbers, self.shape.most
        return self._place(-1, most, 0, numbers.known - numbers.fresh, numbers.fresh, group, first)

    def run(self, ahead: int, count: int, group: int, first: Tensor | None = None) -> LaneRows:
        """Rows [L * count] of the positions from ``ahead`` behind the last committed token on (0: that one); those that
        a lane's limit leaves out are not real."""
        return self._place(ahead, count, ahead, self._last, self._room, group, first)

    def _place(
        self, name: int, count: int, skip: int, base: Tensor, live: Tensor, group: int, first: Tensor | None
    ) -> LaneRows:
        rows, places = self._held(name, count, group)
        begin = self._zero if first is None else first
        place(self.numbers.tables, base, live, begin, skip, self.page_size, self.trash, places)
        return LaneRows(places.turn, RaggedAttention(rows, self.reach, trees=False, group=group))

    def _held(self, name: int, count: int, group: int) -> tuple[RaggedRows, Places]:
        """Tensors at fixed addresses for rows of that name."""
        found = self._rows.get((name, count, group))
        if found is None:
            lanes, total = self.shape.lanes, self.shape.lanes * count
            shape = RowShape(total, count_blocks([count] * lanes, group), lanes, 1)
            rows = RaggedRows.allocate(shape, self._device)
            rows.shape = replace(shape, pages=self.shape.pages)
            rows.tables = self.numbers.tables
            rows.lanes.copy_(torch.arange(lanes).repeat_interleave(count))
            most = max(1, TILE_ROWS // group)
            starts = [start + at for start in range(0, total, count) for at in range(0, count, most)]
            blocks = [(at, min(most, count - at % count)) for at in starts]
            rows.block_row.copy_(torch.tensor([at for at, _ in blocks]))
            rows.block_count.copy_(torch.tensor([size for _, size in blocks]))
            turn = torch.zeros(total, dtype=torch.int64, device=self._device)
            found = self._rows[name, count, group] = rows, Places(rows.positions, rows.slots, rows.first, turn)
        return found

    def pick(self, logits: Tensor, ahead: int, ids: Tensor | None = None, *, coupled: bool = True) -> Tensor:
        """Tokens [L] that each lane would draw from a drafter's logits [L, V] for the position ``ahead`` behind the
        last committed token (1: the next one). ``ids`` [V]: the target's id of each logit. Not ``coupled``: the
        likeliest, without noise."""
        rows = self.sampling._replace(position=self._last + ahead)
        if not coupled:
            rows = rows._replace(temperature=self._greedy)
        return draw(logits, rows, cutoffs=self.cutoffs and coupled, ids=ids).tokens[:, 0]

    def draw(self, logits: Tensor, count: int) -> Drawn:
        """What the target samples from logits [L * count, V] of a run that begins at the last committed token."""
        lane, offset = self._offsets(count)
        position = (self.numbers.known[:, None] + offset).flatten()
        return draw(logits, self.sampling._replace(lane=lane, position=position), cutoffs=self.cutoffs)

    def _offsets(self, count: int) -> tuple[Tensor, Tensor]:
        """Lane [L * count] and place in it [count] of each row of a run."""
        found = self._row_lanes.get(count)
        if found is None:
            lane = self.sampling.lane.repeat_interleave(count)
            found = self._row_lanes[count] = lane, torch.arange(count, device=self._device)
        return found


class Entry(NamedTuple):
    """A sequence on its way into a lane: the drafter has yet to take in the last ``fresh`` committed tokens; ``states``
    [fresh, S] are the target's of the positions before theirs; ``first``: the first slot that it has filled."""

    fresh: int
    states: Tensor | None = None
    first: int = 0


class LaneDrafter(Protocol):
    """A drafter whose chains can be drafted in a round. What ``draft`` does is captured: no host value of a tensor, no
    shape that depends on one."""

    def enter(self, row: DraftRow, most: int) -> Entry | None:
        """Take in all committed tokens but ``most`` at most, at least the last one being left; ``None`` where the
        drafter cannot draft for this row now."""
        ...

    def draft(self, lanes: Lanes, k: int) -> Tensor:
        """Take in the recent tokens of every lane, then draft chains [L, k] int64; k >= 1."""
        ...

    def leave(self, row: DraftRow, taken: int) -> None:
        """The row leaves its lane: the drafter has taken in the first ``taken`` committed tokens. What the target's
        states of later positions are follows through ``row.hidden``."""
        ...
