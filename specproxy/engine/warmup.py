"""Measures what a step and a draft cost here, which also warms every kernel up. Runs between steps, on own pages."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import torch

from specproxy.drafters.base import DraftBatch, DraftContext, Drafter, DraftRow
from specproxy.engine.controller import LEAST_CHAIN
from specproxy.engine.costs import CostTable
from specproxy.engine.pages import PagePool
from specproxy.engine.runner import Runner
from specproxy.engine.step import Step
from specproxy.errors import ModelLoadError
from specproxy.sampling.sampler import Row, Sampler, sample_rows
from specproxy.vocabulary import MAX_TREE_NODES, SamplingParams

if TYPE_CHECKING:
    from specproxy.drafters.lanes import LaneDrafter
    from specproxy.engine.loop import Engine
    from specproxy.engine.round_graphs import RoundGraphs

CONTEXT = 300
STEP_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
ROWS_PER_SEQUENCE = 16
CHAIN_ROWS = (1, 2, 4, 8)
CHAIN_LENGTHS = (1, 2, 4, 8)
ROUND_LENGTHS = (1, 2, 3, 4, 5, 6, 7)
REPEATS = 6
BEGUN = (12, 28, 60, 120)


class Warmup:
    """Measurements on pages borrowed from the pool; ``close`` gives them back."""

    def __init__(self, runner: Runner, pool: PagePool, vocab_size: int) -> None:
        self._runner = runner
        self._pool = pool
        self._vocab = vocab_size
        self._context = min(CONTEXT, runner.model.spec.max_len // 2)
        self._rows: dict[tuple[str, int], DraftRow] = {}
        calls = (len(CHAIN_ROWS) * len(CHAIN_LENGTHS) + 1) * (REPEATS + 1) + 1
        pages = -(-(self._context + calls + MAX_TREE_NODES + 1) // pool.page_size)
        self._tables = [self._borrow(pages) for _ in range(min(max(CHAIN_ROWS), pool.available // pages))]

    def _borrow(self, pages: int) -> list[int]:
        table: list[int] = []
        while len(table) < pages:
            page = self._pool.allocate(table[-1] if table else None)
            if page is None:
                raise RuntimeError("the pool gave fewer pages than it said were available")
            table.append(page)
        return table

    def close(self) -> None:
        """Give the pages back."""
        for table in self._tables:
            for page in table:
                self._pool.release(page)

    @property
    def has_pages(self) -> bool:
        """Whether there were pages for one sequence at least."""
        return bool(self._tables)

    def steps(self) -> dict[int, float]:
        """Rows -> seconds of a decode step with greedy sampling, the fastest of a few."""
        limit = self._runner.rules.max_rows
        return {
            rows: _fastest(partial(self._step, rows))
            for rows in STEP_ROWS
            if rows <= limit and -(-rows // ROWS_PER_SEQUENCE) <= len(self._tables)
        }

    def tree(self) -> float:
        """How many times as long as a chain's a tree's step of as many rows takes."""
        parents = [-1, -1, -1, 0, 0, 0, 3, 3, 3, 6, 6, 6]
        chain = list(range(-1, len(parents) - 1))
        branching, straight = (_fastest(partial(self._tree, shape)) for shape in (parents, chain))
        return branching / straight

    def _tree(self, parents: list[int]) -> None:
        step = Step("decode")
        size = self._runner.kv.page_size
        step.add_tree(0, [0] * len(parents), parents, self._context, self._tables[0], size)
        self._runner.run(step)

    def catch_up(self, drafter: Drafter) -> float:
        """Seconds for each token of a text that ``drafter`` meets for the first time: of a second one, as the first
        draft of all warms things up."""
        seconds = 0.0
        for i in range(min(2, len(self._tables))):
            ctx = DraftContext([self._advance(drafter, i)])
            ctx.rows[0].k = ctx.rows[0].room = 1
            began = time.perf_counter()
            drafter.propose(ctx, DraftBatch.allocate(1, 1))
            seconds = time.perf_counter() - began
        usual = _fastest(partial(self._draft, drafter, 1, 1))
        return max(0.0, seconds - usual) / self._context

    def begin(self, drafter: Drafter, lanes: LaneDrafter) -> None:
        """Prompts of a few lengths, as lane drafters take them in: kernels are compiled for classes of lengths."""
        for length in BEGUN:
            tokens = [0] * (length + 2)
            row = DraftRow(f"begun-{length}", tokens, len(tokens), 0, "", self._sampler(), pages=self._tables[0])
            drafter.prefill(DraftContext([row]))
            self._see(row, drafter, 0, length + 1)
            lanes.begin(row)
            drafter.release(row.seq_id)

    def chains(self, drafter: Drafter) -> dict[tuple[int, int], float]:
        """(rows, k) -> seconds that ``drafter`` takes to draft k tokens for each of so many sequences."""
        return {
            (rows, k): _fastest(partial(self._draft, drafter, rows, k))
            for rows in CHAIN_ROWS
            for k in CHAIN_LENGTHS
            if rows <= len(self._tables) and k <= drafter.needs.max_k
        }

    def rounds(self, drafter: Drafter, graphs: RoundGraphs, costs: CostTable) -> dict[tuple[int, int], float]:
        """As ``chains``, of what drafting adds to a step in a round."""
        found = {}
        for count in CHAIN_ROWS:
            for k in ROUND_LENGTHS if count == 1 else ROUND_LENGTHS[::2]:
                if count <= len(self._tables) and k <= drafter.needs.max_k:
                    seconds = graphs.time(drafter.name, k, self._tables[:count], self._context, REPEATS)
                    found[count, k] = max(LEAST_CHAIN, seconds - costs.step(count * (k + 1)))
        return found

    def _sampler(self) -> Sampler:
        device = torch.device(self._runner.model.spec.device)
        return Sampler(SamplingParams(temperature=0.0), 0, 0, [0], self._vocab, (), device)

    def _step(self, rows: int) -> None:
        step, samples = Step("decode"), []
        sampler = self._sampler()
        for start in range(0, rows, ROWS_PER_SEQUENCE):
            count = min(ROWS_PER_SEQUENCE, rows - start)
            table = self._tables[start // ROWS_PER_SEQUENCE]
            step.add_chain([0] * count, self._context, table, self._runner.kv.page_size, 0)
            samples += [Row(sampler, (), self._context + i) for i in range(count)]
        sample_rows(self._runner.run(step)[0], samples)

    def _draft(self, drafter: Drafter, rows: int, k: int) -> None:
        """One draft of each row, a token after the last one."""
        ctx = DraftContext([self._advance(drafter, i) for i in range(rows)])
        for row in ctx.rows:
            row.k, row.room = k, k
        drafter.propose(ctx, DraftBatch.allocate(rows, k))

    def _advance(self, drafter: Drafter, i: int) -> DraftRow:
        """The row of a sequence that has grown by a token since it was last drafted for."""
        row = self._rows.get((drafter.name, i))
        known = self._context if row is None else len(row.tokens)
        if row is None:
            tokens = [0] * known
            row = DraftRow(f"warmup-{i}", tokens, known, 0, "", self._sampler(), pages=self._tables[i])
            self._rows[drafter.name, i] = row
            self._see(row, drafter, 0, known)
            drafter.prefill(DraftContext([row]))
        else:
            self._see(row, drafter, known - 1, known)
        row.tokens = [0] * (known + 1)
        return row

    def _see(self, row: DraftRow, drafter: Drafter, start: int, end: int) -> None:
        """Hidden states of positions from ``start`` on, as the drafter reads them."""
        spec, needs = self._runner.model.spec, drafter.needs
        if needs.hidden:
            width = spec.hidden_size * len(needs.hidden)
            row.hidden.append(start, torch.zeros(end - start, width, dtype=spec.dtype, device=spec.device))


def measure_steps(runner: Runner, pool: PagePool, vocab_size: int) -> CostTable:
    """What steps of the target cost on this machine."""
    with closing(Warmup(runner, pool, vocab_size)) as warmup:
        return CostTable(warmup.steps(), tree=warmup.tree())


def measure_chains(engine: Engine, vocab_size: int, drafter: Drafter) -> tuple[dict[tuple[int, int], float], float]:
    """(rows, k) -> seconds of a device drafter's chains, and seconds for each token that it must take in first; nothing
    for host drafters, which count as free. Raises ModelLoadError where running sequences have all pages."""
    if drafter.needs.place == "host":
        return {}, 0.0
    with closing(Warmup(engine.runner, engine.scheduler.pool, vocab_size)) as warmup:
        if not warmup.has_pages:
            raise ModelLoadError(
                f"drafters.{drafter.name}: every page of KV is in use, and its speed cannot be measured without some; "
                "load it when fewer requests run"
            )
        catch_up = warmup.catch_up(drafter)
        if engine.rounds is not None and drafter.needs.lanes:
            warmup.begin(drafter, engine.drafting.loaded.for_lanes(drafter.name))
            return warmup.rounds(drafter, engine.rounds.graphs, engine.drafting.costs), catch_up
        return warmup.chains(drafter), catch_up


def _fastest(run: Callable[[], None]) -> float:
    """Seconds of ``run`` undisturbed: the fastest of a few calls after one that does not count."""
    run()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)
