"""Steps of the target as CUDA graphs: the same launches, without the host between them.

A graph is captured for a shape of step (``step_shapes.py``): for the usual ones at start, for others when they first
occur. What changes from step to step lies in buffers at fixed addresses.

Shapes: T rows, N sampled rows, V vocabulary, D hidden width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from specproxy.engine.step import Step
from specproxy.engine.step_shapes import StepShape, full_reach, shape_of, short_reach
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.ragged_attention import RaggedAttention
from specproxy.kernels.ragged_rows import RaggedRows, RowShape
from specproxy.models.base import StepModel, query_group


class Captured:
    """Work captured once and replayed. ``work`` runs twice before, which compiles kernels and takes memory; ``pool``:
    memory that graphs share (torch.cuda.graph_pool_handle)."""

    def __init__(self, work: Callable[[], None], pool: Any) -> None:
        stream = _side_stream(torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
            work()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            work()

    def replay(self) -> None:
        """Enqueue the work."""
        self._graph.replay()


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The one stream of a device on which work is captured: torch keeps a workspace of some 32 MB for its products on
    every stream that runs any."""
    return torch.cuda.Stream(device)


@dataclass
class _Feed:
    """Inputs of a step on the host or on the device. ``numbers`` [2 * T + N] int64: ids, positions, and the rows that
    are sampled, where not all are."""

    rows: RaggedRows
    numbers: Tensor

    @classmethod
    def allocate(cls, rows: RowShape, sampled: int, device: str, *, pinned: bool = False) -> _Feed:
        """Rows that attend to nothing, of token 0 at position 0; the first is sampled."""
        numbers = torch.zeros(2 * rows.rows + sampled, dtype=torch.int64, device=device, pin_memory=pinned)
        return cls(RaggedRows.allocate(rows, device, pinned=pinned), numbers)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [T], positions [T], sampled rows [N]."""
        count = self.rows.shape.rows
        return self.numbers[:count], self.numbers[count : 2 * count], self.numbers[2 * count :]


class _StepGraph:
    """One shape's graph with its buffers. Of a decode step every row's logits are computed: the head reads its weight
    once for all. Of a chunk, those of the rows that are sampled."""

    def __init__(self, model: StepModel, kv: KVBuffers, shape: StepShape, group: int, pool: Any) -> None:
        self._model, self._kv, self._shape, self._group = model, kv, shape, group
        rows = RowShape(shape.rows, shape.blocks, shape.blocks, -(-shape.reach // kv.page_size))
        device = model.spec.device
        self._host = _Feed.allocate(rows, shape.sampled or 0, "cpu", pinned=True)
        self._device = _Feed.allocate(rows, shape.sampled or 0, device)
        self._device.rows.slots.fill_(kv.trash_slot)
        self._copied = torch.cuda.Event()
        self._results: tuple[Tensor, list[Tensor]] | None = None
        self._graph = Captured(self._work, pool)

    def _work(self) -> None:
        plan = RaggedAttention(self._device.rows, self._shape.reach, trees=self._shape.trees, group=self._group)
        ids, positions, sampled = self._device.parts
        wanted = None if self._shape.sampled is None else sampled
        self._results = self._model.forward(ids, positions, plan, self._kv, wanted, self._shape.hidden)

    def run(self, step: Step) -> tuple[Tensor, list[Tensor]]:
        """Logits [T, V], or [N, V] of a chunk's sampled rows, and states [T, D], copied out of what the next step
        overwrites."""
        count = len(step.ids)
        ids, positions, sampled = self._host.parts
        self._copied.synchronize()  # the host may be ahead: what it wrote last must have left before it writes again
        self._host.rows.fill(step.spans, step.slots, self._kv.trash_slot, self._kv.page_size, self._group)
        self._host.numbers.zero_()
        ids[:count] = torch.tensor(step.ids)
        positions[:count] = torch.tensor(step.positions)
        if self._shape.sampled is not None:
            sampled[: len(step.sample)] = torch.tensor(step.sample)
        self._device.rows.buffer.copy_(self._host.rows.buffer, non_blocking=True)
        self._device.numbers.copy_(self._host.numbers, non_blocking=True)
        self._copied.record()
        self._graph.replay()
        if self._results is None:
            raise RuntimeError("a graph was replayed that was never captured")
        logits, taps = self._results
        return logits.clone(), [tap.clone() for tap in taps]


class StepGraphs:
    """All graphs of a target. Steps run one behind the other, so they share their memory. ``bytes``: of the device's
    memory, what captures took so far."""

    def __init__(self, model: StepModel, kv: KVBuffers) -> None:
        self.bytes = 0
        self._model, self._kv = model, kv
        self._group = query_group(model)
        max_len, page_size = model.spec.max_len, kv.page_size
        self._reaches = (short_reach(max_len, page_size), full_reach(max_len, page_size))
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[StepShape, _StepGraph] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def run(
        self, step: Step, width: int, hidden: Sequence[int], sampled: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Execute a decode step padded to ``width`` rows or more, T: logits [T, V], states [T, D]. With ``sampled``
        it is a chunk of just ``width`` rows, the logits [N, V] those of its sampled rows, padded to so many, N."""
        shape = shape_of(step, width, sampled, hidden, self._group, self._reaches)
        return self._graph(shape).run(step)

    def capture(self, shapes: Iterable[StepShape], seconds: float) -> int:
        """Capture ``shapes`` in their order, as many as can be begun within ``seconds``; how many were left out."""
        until, left = time.monotonic() + seconds, 0
        for shape in shapes:
            if shape not in self._graphs and time.monotonic() > until:
                left += 1
            else:
                self._graph(shape)
        return left

    def _graph(self, shape: StepShape) -> _StepGraph:
        """The graph of ``shape``, captured now if it is a new one; what that takes is measured around it."""
        graph = self._graphs.get(shape)
        if graph is None:
            before = free_bytes(self._model.spec.device)
            graph = self._graphs[shape] = _StepGraph(self._model, self._kv, shape, self._group, self._pool)
            self.bytes += max(0, before - free_bytes(self._model.spec.device))
        return graph


def free_bytes(device: str) -> int:
    """Bytes of the device that nobody holds, the allocator's unused ones included."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
