"""Measures what a step and a draft cost here, which also warms every kernel up. Runs before the first sequence."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from specproxy.drafters.base import DraftBatch, DraftContext, Drafter, DraftRow
from specproxy.engine.costs import CostTable
from specproxy.engine.runner import Runner
from specproxy.engine.sampling import Row, Sampler, sample_rows
from specproxy.engine.step import Step
from specproxy.kernels.attention import KVBuffers
from specproxy.vocabulary import SamplingParams

CONTEXT = 300
STEP_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
ROWS_PER_SEQUENCE = 16
CHAIN_ROWS = (1, 2, 4, 8)
CHAIN_LENGTHS = (1, 2, 4, 8)
REPEATS = 5


class Warmup:
    """Measurements on the pages of an empty pool: whoever is given a page later finds it cleared."""

    def __init__(self, runner: Runner, vocab_size: int) -> None:
        self._runner = runner
        self._vocab = vocab_size
        self._context = min(CONTEXT, runner.model.spec.max_len // 2)
        size = runner.kv.page_size
        self._pages = -(-(self._context + ROWS_PER_SEQUENCE + max(CHAIN_LENGTHS)) // size)
        self._states: dict[tuple[str, int], object] = {}
        self._room = (runner.kv.num_pages - KVBuffers.RESERVED_PAGES) // self._pages

    def steps(self) -> dict[int, float]:
        """Rows -> seconds of a decode step with greedy sampling, median of a few."""
        limit = self._runner.rules.max_rows
        return {
            rows: _median(lambda rows=rows: self._step(rows))
            for rows in STEP_ROWS
            if rows <= limit and -(-rows // ROWS_PER_SEQUENCE) <= self._room
        }

    def chains(self, drafter: Drafter) -> dict[tuple[int, int], float]:
        """(rows, k) -> seconds that ``drafter`` takes to draft k tokens for each of so many sequences."""
        return {
            (rows, k): _median(lambda rows=rows, k=k: self._draft(drafter, rows, k))
            for rows in CHAIN_ROWS
            for k in CHAIN_LENGTHS
            if rows <= self._room and k <= drafter.needs.max_k
        }

    def _table(self, index: int) -> list[int]:
        first = KVBuffers.RESERVED_PAGES + index * self._pages
        return list(range(first, first + self._pages))

    def _sampler(self) -> Sampler:
        device = torch.device(self._runner.model.spec.device)
        return Sampler(SamplingParams(temperature=0.0), 0, 0, [0], self._vocab, (), device)

    def _step(self, rows: int) -> None:
        step, samples = Step("decode"), []
        sampler = self._sampler()
        for start in range(0, rows, ROWS_PER_SEQUENCE):
            count = min(ROWS_PER_SEQUENCE, rows - start)
            table = self._table(start // ROWS_PER_SEQUENCE)
            step.add_chain([0] * count, self._context, table, self._runner.kv.page_size, 0)
            samples += [Row(sampler, (), self._context + i) for i in range(count)]
        sample_rows(self._runner.run(step)[0], samples)

    def _draft(self, drafter: Drafter, rows: int, k: int) -> None:
        batch = DraftBatch.allocate(rows, k)
        ctx = DraftContext(
            [
                DraftRow(
                    seq_id=f"warmup-{i}",
                    tokens=[0] * (self._context + 1),
                    num_prompt=1,
                    k=k,
                    group="",
                    sampler=self._sampler(),
                    pages=self._table(i),
                    state=self._states.get((drafter.name, i)),
                )
                for i in range(rows)
            ]
        )
        drafter.propose(ctx, batch)
        for i, row in enumerate(ctx.rows):
            self._states[drafter.name, i] = row.state


def measure(runner: Runner, drafters: dict[str, Drafter], vocab_size: int) -> CostTable:
    """The cost table of this engine on this machine."""
    warmup = Warmup(runner, vocab_size)
    chains = {name: warmup.chains(d) for name, d in drafters.items() if d.needs.place == "device"}
    return CostTable(warmup.steps(), chains)


def _median(run: Callable[[], None]) -> float:
    """Seconds of ``run``, after one call that does not count."""
    run()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
