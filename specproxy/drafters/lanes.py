"""Sequences in fixed places on the device, for rounds that run without the host: draft, step, draw and walk.

A round reads and writes tensors at fixed addresses, so that it can be captured in a CUDA graph and one round can follow
the other before the host has seen what the first one said. A lane is one sequence; ``engine/rounds.py`` fills lanes
from sequences and reads back what was committed.

Shapes: L lanes, W tokens that a round commits to a lane at most, S width of the target's states that a drafter reads
(concatenated), P pages of a lane, V logits a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from specproxy.drafters.base import DraftRow
from specproxy.drafters.forms import Form, Spot, run_of
from specproxy.kernels.draw import Drawn, draw
from specproxy.kernels.draw_rows import DrawRows
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.place import Places, Spots, place
from specproxy.kernels.ragged_attention import RaggedAttention
from specproxy.kernels.ragged_rows import TAIL, TILE_ROWS, RaggedRows, RowShape, count_blocks


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
    """What the host fills lanes with, on one device: views of four buffers that are copied whole; of ``orders``, a part
    of one, before every round whose orders are others.

    ``known`` [L] int64: committed tokens. ``fresh`` [L] int64: of them, those that the drafter has yet to take in; they
    stand in ``recent`` [L, W] int64. ``live`` [L] int64: 1 for a lane with a sequence. ``limit`` [L] int64: tokens that
    may be drafted; -1 stops a lane. ``given`` [L, W] int64: tokens that the host drafted, each plus 1; 0 where it said
    none. ``seed``, ``choice`` [L] int64, ``top_k``, ``vocab`` [L] int32, ``temperature``,
    ``min_p`` [L] float32, ``top_p`` [L] float64: as in DrawRows. ``first`` [L] int32: the first slot that the drafter
    has filled. ``tables`` [L, P] int32: pages.
    """

    known: Tensor
    fresh: Tensor
    live: Tensor
    limit: Tensor
    given: Tensor
    orders: Tensor
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

        whole, small = zeros(count * (6 + 2 * most), torch.int64), zeros(count * (3 + pages), torch.int32)
        floats, self.top_p = zeros(count * 2, torch.float32), zeros(count, torch.float64)
        self.buffers = (whole, small, floats, self.top_p)
        *columns, recent, self.orders = whole.split([count] * 5 + [count * most, count * (1 + most)])
        self.known, self.fresh, self.live, self.seed, self.choice = columns
        self.recent = recent.view(count, most)
        self.limit, given = self.orders.split([count, count * most])
        self.given = given.view(count, most)
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
        self._newest, self._last, self._room, self._recent = self._starts, numbers.known, numbers.live, numbers.fresh
        self._rows: dict[tuple[str, tuple[Spot, ...], int], tuple[RaggedRows, Places, Spots]] = {}
        self._row_lanes: dict[int, Tensor] = {}
        self._depths: dict[tuple[int, ...], Tensor] = {}

    @property
    def first(self) -> Tensor:
        """The first slot [L] that the drafter has filled."""
        return self.numbers.first

    def begin(self) -> None:
        """What the round's parts share: where each lane's last token stands, how many rows may follow, and how many
        recent tokens are real: of a lane that was stopped none, as its pages may be another's by now."""
        numbers = self.numbers
        self._newest = self._starts + (numbers.fresh - 1).clamp_(min=0)
        self._last = numbers.known - 1
        self._room = (numbers.limit + 1) * numbers.live
        self._recent = numbers.fresh * (numbers.limit >= 0)

    @property
    def last(self) -> Tensor:
        """Position [L] of each lane's last committed token, int64."""
        return self._last

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

    def given(self, count: int, drafted: Tensor | None) -> Tensor:
        """Drafts [L, count]: the host's tokens where it gave some, elsewhere ``drafted``; 0 where there is neither."""
        given = self.numbers.given[:, :count]
        return (given - 1).clamp_(min=0) if drafted is None else torch.where(given > 0, given - 1, drafted)

    def entries(self, group: int, first: Tensor | None = None) -> LaneRows:
        """Rows [L * W] of the recent tokens, at their positions. ``group``: query heads that share a key head;
        ``first`` [L]: keys before it are not seen."""
        numbers, spots = self.numbers, run_of(0, self.shape.most)
        return self._place("recent", spots, numbers.known - numbers.fresh, self._recent, group, first)

    def rows(self, spots: Sequence[Spot], group: int, first: Tensor | None = None) -> LaneRows:
        """Rows [L * n] behind the last committed token, which is spot 0; those that a lane's limit leaves out are not
        real."""
        return self._place("ahead", tuple(spots), self._last, self._room, group, first)

    def _place(
        self, name: str, spots: tuple[Spot, ...], base: Tensor, live: Tensor, group: int, first: Tensor | None
    ) -> LaneRows:
        rows, places, where = self._held(name, spots, group)
        begin = self._zero if first is None else first
        place(self.numbers.tables, base, live, begin, where, self.page_size, self.trash, places)
        return LaneRows(places.turn, RaggedAttention(rows, self.reach, trees=where.paths is not None, group=group))

    def _held(self, name: str, spots: tuple[Spot, ...], group: int) -> tuple[RaggedRows, Places, Spots]:
        """Tensors at fixed addresses for rows of that name at these spots."""
        found = self._rows.get((name, spots, group))
        if found is None:
            lanes, count, device = self.shape.lanes, len(spots), self._device
            shape = RowShape(lanes * count, count_blocks([count] * lanes, group), lanes, 1)
            rows = RaggedRows.allocate(shape, device)
            rows.shape = replace(shape, pages=self.shape.pages)
            rows.tables = self.numbers.tables
            rows.lanes.copy_(torch.arange(lanes).repeat_interleave(count))
            most = max(1, TILE_ROWS // group)
            starts = [start + at for start in range(0, lanes * count, count) for at in range(0, count, most)]
            blocks = [(at, min(most, count - at % count)) for at in starts]
            rows.block_row.copy_(torch.tensor([at for at, _ in blocks]))
            rows.block_count.copy_(torch.tensor([size for _, size in blocks]))
            turn = torch.zeros(lanes * count, dtype=torch.int64, device=device)
            places = Places(rows.positions, rows.slots, rows.first, turn, rows.tail_from, rows.tails)
            found = self._rows[name, spots, group] = rows, places, on_device(spots, device)
        return found

    def pick(
        self, logits: Tensor, ahead: int, ids: Tensor | None = None, *, best: int = 1, coupled: bool = True
    ) -> Tensor:
        """Tokens [L, m, best] that each lane would draw, best first, from a drafter's logits [L * m, V] for the
        position ``ahead`` behind the last committed token (1: the next one). ``ids`` [V]: the target's id of each
        logit. Not ``coupled``: the likeliest, without noise."""
        count = logits.shape[0] // self.shape.lanes
        lane, position = self._lane(count), self._last + ahead
        rows = self.sampling._replace(lane=lane, position=position.repeat_interleave(count) if count > 1 else position)
        if not coupled:
            rows = rows._replace(temperature=self._greedy)
        drawn = draw(logits, rows, best, cutoffs=self.cutoffs and coupled, ids=ids).tokens
        return drawn.view(self.shape.lanes, count, best)

    def draw(self, logits: Tensor, spots: Sequence[Spot]) -> Drawn:
        """What the target samples from logits [L * n, V] at ``spots``."""
        depths = tuple(spot.depth for spot in spots)
        if depths not in self._depths:
            self._depths[depths] = torch.tensor(depths, device=self._device)
        position = (self.numbers.known[:, None] + self._depths[depths]).flatten()
        rows = self.sampling._replace(lane=self._lane(len(depths)), position=position)
        return draw(logits, rows, cutoffs=self.cutoffs)

    def _lane(self, count: int) -> Tensor:
        """Lane [L * count] of each row, int32."""
        found = self._row_lanes.get(count)
        if found is None:
            found = self._row_lanes[count] = self.sampling.lane.repeat_interleave(count)
        return found


def on_device(spots: Sequence[Spot], device: torch.device | str) -> Spots:
    """Spots as a kernel takes them."""

    def column(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    order, depth = column([spot.order for spot in spots]), column([spot.depth for spot in spots])
    if not any(spot.path for spot in spots):
        return Spots(order, depth)
    paths = torch.full((len(spots), TAIL), -1, dtype=torch.int32)
    for row, spot in enumerate(spots):
        paths[row, : len(spot.path)] = torch.tensor(spot.path, dtype=torch.int32)
    return Spots(order, depth, paths.to(device), max(spot.start for spot in spots))


class Entry(NamedTuple):
    """A sequence on its way into a lane: the drafter has yet to take in the last ``fresh`` committed tokens; ``states``
    [fresh, S] are the target's of the positions before theirs; ``first``: the first slot that it has filled."""

    fresh: int
    states: Tensor | None = None
    first: int = 0


class LaneDrafter(Protocol):
    """A drafter that can draft in a round. What ``draft`` does is captured: no host value of a tensor, no shape that
    depends on one."""

    def begin(self, row: DraftRow) -> None:
        """A part of the row's prompt is being computed: enqueue what can be taken in of it already."""
        ...

    def enter(self, row: DraftRow, most: int) -> Entry | None:
        """Take in all committed tokens but ``most`` at most, at least the last one being left; ``None`` where the
        drafter cannot draft for this row now."""
        ...

    def form(self, levels: int, nodes: int, width: int) -> Form:
        """What it drafts best with so many levels, nodes at most and children of a node (1 or 2)."""
        ...

    def draft(self, lanes: Lanes, form: Form) -> Tensor:
        """Take in the recent tokens of every lane, then draft: tokens [L, N] int64 of the form's nodes."""
        ...

    def take_in(self, lanes: Lanes) -> None:
        """Take in the recent tokens of every lane and draft nothing: somebody else does, or nobody."""
        ...

    def leave(self, row: DraftRow, taken: int) -> None:
        """The row leaves its lane: the drafter has taken in the first ``taken`` committed tokens. What the target's
        states of later positions are follows through ``row.hidden``."""
        ...
