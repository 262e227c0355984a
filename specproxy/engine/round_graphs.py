"""The captured work of rounds: one piece for each key, over lanes that pieces of one drafter share."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import TypeVar

import torch

from specproxy.drafters.lanes import Lanes, LaneShape
from specproxy.engine.berth import Berth
from specproxy.engine.captured_round import DraftRound, LaneWork, Round
from specproxy.engine.graphs import free_bytes
from specproxy.engine.loaded import LoadedDrafters
from specproxy.engine.round_shapes import LANES, RoundKey, RoundShapes
from specproxy.engine.runner import Runner

Work = TypeVar("Work", bound=LaneWork)


class RoundGraphs:
    """All rounds of a target that were wanted so far, captured where there are graphs. ``bytes``: of the device's
    memory, what captures took."""

    def __init__(self, runner: Runner, loaded: LoadedDrafters, shapes: RoundShapes, clock: Callable[[], float]) -> None:
        self.bytes = 0
        self._runner = runner
        self._loaded = loaded
        self._shapes = shapes
        self._clock = clock
        self._berths: dict[tuple[str, int], Berth] = {}
        self._rounds: dict[RoundKey, Round] = {}
        self._drafts: dict[RoundKey, DraftRound] = {}
        self._pool = torch.cuda.graph_pool_handle() if runner.model.spec.captured else None

    def __contains__(self, key: RoundKey) -> bool:
        return key in self._rounds

    def round(self, key: RoundKey) -> Round:
        """The round of ``key``. Nobody may sit in its lanes where it is a new one: capturing runs it."""
        found = self._rounds.get(key)
        if found is None:
            drafter = self._loaded.for_lanes(key.drafter) if key.drafter else None
            reads = self._loaded.reads(key.drafter)
            found = self._rounds[key] = self._capture(
                key, lambda lanes: Round(self._runner, lanes, drafter, reads, key)
            )
        return found

    def draft(self, key: RoundKey) -> DraftRound:
        """Its draft alone; as ``round``."""
        found = self._drafts.get(key)
        if found is None:
            drafter = self._loaded.for_lanes(key.drafter)
            found = self._drafts[key] = self._capture(key, lambda lanes: DraftRound(lanes, drafter, key))
        return found

    def berth(self, key: RoundKey) -> Berth:
        """The lanes of ``key``."""
        found = self._berths.get((key.drafter, key.lanes))
        if found is None:
            spec = self._runner.model.spec
            states = spec.hidden_size * len(self._loaded.reads(key.drafter))
            shape = LaneShape(key.lanes, self._shapes.most(key.lanes), states, self._shapes.pages)
            lanes = Lanes(shape, self._runner.kv, spec.dtype, spec.device)
            found = self._berths[key.drafter, key.lanes] = Berth(lanes, spec.device)
        return found

    def forget(self, drafter: str) -> None:
        """A drafter is unloaded."""
        self._drafts = {key: work for key, work in self._drafts.items() if key.drafter != drafter}
        self._rounds = {key: work for key, work in self._rounds.items() if key.drafter != drafter}
        self._berths = {key: berth for key, berth in self._berths.items() if key[0] != drafter}

    def prepare(self, sequences: int) -> None:
        """Capture what an ordinary run of up to so many sequences needs with the drafters that are loaded, as far as it
        has not been, so that nobody waits for it. Nobody may sit in any lane."""
        if self._pool is None:
            return
        for drafter in ("", *self._loaded.in_lanes):
            for key in self._shapes.usual(drafter, sequences):
                self.round(key)
                if key.drafted % 2:
                    self.draft(key._replace(hidden=()))

    def time(self, drafter: str, k: int, tables: Rows[Rows[int]], context: int, repeats: int) -> float:
        """Seconds of a round over as many made-up sequences as there are ``tables``, each of ``context`` tokens: the
        fastest of some. 0: nobody drafts; "": nor takes anything in."""
        lanes, count = min(lanes for lanes in LANES if lanes >= len(tables)), len(tables)
        key = self._shapes.of_chains(drafter, lanes, k, context)
        work, berth, seconds = self.round(key), self.berth(key), []
        numbers = berth.lanes.numbers
        for _ in range(repeats):
            for lane, table in enumerate(tables):
                numbers.tables[lane, : len(table)] = torch.tensor(table, dtype=torch.int32)
            numbers.known[:count], numbers.limit[:count], numbers.vocab[:count] = context, k, 1
            numbers.fresh[:count], numbers.live[:count] = 1, 1
            berth.read(work.out).wait()
            began = self._clock()
            work.replay()
            berth.read(work.out).wait()
            seconds.append(self._clock() - began)
        berth.clear()
        return min(seconds)

    def _capture(self, key: RoundKey, make: Callable[[Lanes], Work]) -> Work:
        """New work over empty lanes, captured where there are graphs; what that takes of the device's memory is
        counted."""
        berth, device = self.berth(key), self._runner.model.spec.device
        berth.clear()
        before = free_bytes(device) if self._pool is not None else 0
        work = make(berth.lanes)
        if self._pool is not None:
            work.capture(self._pool)
            berth.clear()
            self.bytes += max(0, before - free_bytes(device))
        return work
