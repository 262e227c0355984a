"""Lanes with what fills them and what reads them: the host's side of a round.

Shapes: L lanes, W tokens that a round commits to a lane at most.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import NamedTuple

import torch
from torch import Tensor

from specproxy.drafters.lanes import Entry, LaneNumbers, Lanes
from specproxy.engine.sequence import Sequence
from specproxy.sampling.on_device import signed


class Arrival(NamedTuple):
    """A tensor on its way to the host, and what tells that it is there."""

    tensor: Tensor
    event: torch.cuda.Event | None

    def wait(self) -> Tensor:
        """The tensor, once it is there."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensor


class Order(NamedTuple):
    """What a lane is to do in a round: verify ``limit`` tokens at most (-1: it is stopped), those of ``given`` where
    the host says which."""

    limit: int
    given: tuple[int, ...] = ()


STOPPED = Order(-1)


class Berth:
    """Lanes with what fills them: numbers on the host, and two places for what a round says."""

    def __init__(self, lanes: Lanes, device: str) -> None:
        cuda = "cuda" in device
        self.lanes = lanes
        self.host = LaneNumbers(lanes.shape, "cpu", pinned=cuda)
        self._limit, self._given = self.host.limit.numpy(), self.host.given.numpy()
        self._copied = torch.cuda.Event() if cuda else None
        size = (lanes.shape.lanes, 1 + 2 * lanes.shape.most)
        self._results = [torch.zeros(size, dtype=torch.int64, pin_memory=cuda) for _ in range(2)]
        self._tables: list[int] = []
        self._orders: list[Order] = []

    def clear(self) -> None:
        """No lane has a sequence."""
        for buffer in self.lanes.numbers.buffers:
            buffer.zero_()

    def fill(self, sequences: Rows[Sequence], entries: Rows[Entry], orders: Rows[Order]) -> None:
        """Put a sequence into each lane."""
        host = self._writable()
        for buffer in host.buffers:
            buffer.zero_()
        samplers, count = [s.sampler for s in sequences], len(sequences)
        cuts = [sampler.cut for sampler in samplers]
        columns: list[tuple[Tensor, list[int] | list[float]]] = [
            (host.known, [len(s.tokens) for s in sequences]),
            (host.fresh, [entry.fresh for entry in entries]),
            (host.live, [1] * count),
            (host.seed, [signed(sampler.seed) for sampler in samplers]),
            (host.choice, [sampler.choice for sampler in samplers]),
            (host.top_k, [cut.top_k for cut in cuts]),
            (host.vocab, [sampler.vocab_size for sampler in samplers]),
            (host.first, [entry.first for entry in entries]),
            (host.temperature, [cut.temperature for cut in cuts]),
            (host.min_p, [cut.min_p for cut in cuts]),
            (host.top_p, [cut.top_p for cut in cuts]),
        ]
        for column, values in columns:
            column[:count] = torch.tensor(values, dtype=column.dtype)
        for lane, (s, entry) in enumerate(zip(sequences, entries, strict=True)):
            host.recent[lane, : entry.fresh] = torch.tensor(s.tokens[len(s.tokens) - entry.fresh :])
            if entry.states is not None:
                self.lanes.states[lane, : entry.fresh].copy_(entry.states)
        self._write_orders(orders)
        self._write_tables(sequences)
        self._send(self.lanes.numbers.buffers, host.buffers)

    def refresh(self, sequences: Rows[Sequence | None], orders: Rows[Order]) -> None:
        """What each lane is to do, and pages that the sequences have got since; ``None``: the lane's is gone."""
        device = self.lanes.numbers
        wanted = [STOPPED if s is None else order for s, order in zip(sequences, orders, strict=True)]
        if wanted != self._orders:
            host = self._writable()
            self._write_orders(wanted)
            self._send([device.orders], [host.orders])
        if [0 if s is None else len(s.table) for s in sequences] != self._tables:
            host = self._writable()
            self._write_tables(sequences)
            self._send([device.tables], [host.tables])

    def _writable(self) -> LaneNumbers:
        """The host's numbers, once what was written last has left."""
        if self._copied is not None:
            self._copied.synchronize()
        return self.host

    def _write_orders(self, orders: Rows[Order]) -> None:
        self._orders = list(orders)
        self._limit[: len(orders)] = [order.limit for order in orders]
        self._given.fill(0)
        for lane, order in enumerate(orders):
            self._given[lane, : len(order.given)] = [token + 1 for token in order.given]

    def _write_tables(self, sequences: Rows[Sequence | None]) -> None:
        self._tables = [0 if s is None else len(s.table) for s in sequences]
        for lane, s in enumerate(sequences):
            if s is not None:
                self.host.tables[lane, : len(s.table)] = torch.tensor(s.table, dtype=torch.int32)

    def _send(self, targets: Rows[Tensor], sources: Rows[Tensor]) -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def read(self, out: Tensor) -> Arrival:
        """A copy of a round's ``out`` on its way to the host; two may be."""
        self._results.reverse()
        self._results[0].copy_(out, non_blocking=True)
        if self._copied is None:
            return Arrival(self._results[0], None)
        event = torch.cuda.Event()
        event.record()
        return Arrival(self._results[0], event)
