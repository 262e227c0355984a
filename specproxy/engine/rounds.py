"""Rounds: draft, step, sample and walk of some sequences as one piece of captured work.

A step that goes through the host waits for it three times: for the draft, for the sampled tokens, for what to do next.
Where all sequences of a step draft chains with the same device drafter, or none, nothing of that needs the host: the
sequences stand in lanes (``drafters/lanes.py``), and a CUDA graph for each (drafter, lanes, K) goes from what the last
round committed to what this one commits. The next round may then be on its way before the host has read this one.

It is the same step: the same model, attention, noise and rule of acceptance, so that a sequence may change between
rounds and ordinary steps whenever it has to.

Shapes: L lanes, W tokens that a round commits to a lane at most, T = L * (K + 1) rows, S width of a drafter's states.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch

from specproxy.drafters.forms import Form
from specproxy.drafters.lanes import Entry, LaneDrafter, Lanes, LaneShape
from specproxy.engine.berth import Arrival, Berth
from specproxy.engine.captured_round import Round, RoundKey
from specproxy.engine.drafting import Draft, Drafting, Plan
from specproxy.engine.runner import GRAPHED_ROWS, Runner
from specproxy.engine.sequence import Sequence
from specproxy.engine.step_shapes import SHORT

MOST = 8
"""Tokens that a round commits to a lane at most; a chain has one fewer."""

WIDEST = 2
"""Children of a node at most: what is drawn on the device is the two best."""

LANES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of lanes that rounds are captured for. For several lanes, and where there are cut-offs, chains have an odd K,
as a graph takes a third of a second to capture; each lane's own K is a limit beneath it."""


class Outcome(NamedTuple):
    """What a sequence gets by a round: tokens, and the rows of logits and states at which each was sampled."""

    tokens: list[int]
    rows: list[int]


@dataclass
class Flight:
    """A round on its way, of ``work``. ``limits``: tokens that each lane may draft. ``ahead``: the next one may start
    before this one is read. ``began``: seconds. ``known``: committed tokens of each lane when it began, empty until the
    round before it is read. ``following``: the round that started before this one was read."""

    plan: Plan
    key: RoundKey
    work: Round
    limits: list[int]
    ahead: bool
    began: float
    known: list[int]
    arrival: Arrival | None = None
    following: Flight | None = None

    @property
    def sequences(self) -> list[Sequence]:
        """Those of the lanes, in order."""
        return self.plan.sequences

    @property
    def rows(self) -> int:
        """Rows of the target's step."""
        return self.key.lanes * (self.key.nodes + 1)

    @property
    def reach(self) -> int:
        """Positions behind the known tokens that it may write to."""
        return max(self.key.levels, self.key.nodes) + 1

    @property
    def in_step(self) -> bool:
        """Whether every lane holds what its sequence does."""
        return self.known == [len(s.tokens) for s in self.sequences]

    def wait(self) -> list[Outcome]:
        """What each sequence gets, once it is there."""
        if self.arrival is None:
            raise RuntimeError("a round is read that was never launched")
        numbers, found = self.arrival.wait(), []
        most = numbers.shape[1] // 2
        for lane, row in enumerate(numbers[: len(self.sequences)].tolist()):
            first, count = lane * (self.key.nodes + 1), row[0]
            found.append(Outcome(row[1 : 1 + count], [first + at for at in row[1 + most : 1 + most + count]]))
        if self.following is not None:
            self.following.known = [known + len(one.tokens) for known, one in zip(self.known, found, strict=True)]
        return found

    def draft(self, lane: int) -> Draft:
        """What the lane's sequence drafted; which tokens these were nobody asks any more."""
        choice, said = self.plan.choices[lane], self.plan.said[lane]
        if choice is None or choice.drafter is None:
            return Draft([], [], None, said)
        row, nodes = self.sequences[lane].row(choice.drafter), min(self.limits[lane], self.key.nodes)
        row.k, row.seen = choice.k, self.known[lane]
        return Draft([0] * nodes, list(self.key.form.parents[:nodes]) if self.key.form else [], choice, said)


class Rounds:
    """All rounds of a target. At most one flight is ``aloft`` between two steps of the loop."""

    def __init__(self, runner: Runner, drafting: Drafting, clock: Callable[[], float]) -> None:
        self.aloft: Flight | None = None
        self._runner = runner
        self._drafting = drafting
        self._clock = clock
        self._limit = runner.model.spec.max_len + runner.kv.page_size
        self._pages = -(-self._limit // runner.kv.page_size) + 1
        self._berths: dict[tuple[str, int], Berth] = {}
        self._rounds: dict[RoundKey, Round] = {}
        self._pool = torch.cuda.graph_pool_handle() if "cuda" in runner.model.spec.device else None

    def start(self, plan: Plan) -> Flight | None:
        """Put the sequences of ``plan`` into lanes and let a round go; ``None`` where it is work for an ordinary
        step."""
        key = self._key(plan)
        if key is None:
            return None
        work, berth = self._round(key), self._berth(key)
        entries = self._enter(plan, key.drafter, berth.lanes.shape.most)
        if entries is None:
            return None
        limits, known = _limits(plan), [len(s.tokens) for s in plan.sequences]
        berth.fill(plan.sequences, entries, limits)
        return self._launch(Flight(plan, key, work, limits, self._ahead(plan, key), self._clock(), known), berth)

    def follow(self, flight: Flight, plan: Plan) -> Flight | None:
        """Let the next round of the same lanes go, with what is on its way still unread; ``None`` where it cannot."""
        key = self._key(plan, behind=flight.key.levels + 1)
        if key is None or key not in self._rounds or (key.drafter, key.lanes) != (flight.key.drafter, flight.key.lanes):
            return None
        if not self._ahead(plan, key):
            return None
        berth, limits = self._berth(key), _limits(plan)
        berth.refresh(plan.sequences, limits)
        following = Flight(plan, key, self._rounds[key], limits, True, self._clock(), [])
        flight.following = self._launch(following, berth)
        return following

    def leave(self, flight: Flight, lane: int, outcome: Outcome) -> None:
        """A lane's sequence goes on in ordinary steps; before what it got is committed."""
        s = flight.sequences[lane]
        if flight.key.drafter:
            row = s.row(flight.key.drafter)
            self._drafter(flight.key.drafter).leave(row, len(s.tokens))
        if flight.work.taps:
            self._drafting.feed(s, len(s.tokens) - 1, flight.work.taps, outcome.rows)

    def forget(self, drafter: str) -> None:
        """A drafter was unloaded."""
        self._rounds = {key: work for key, work in self._rounds.items() if key.drafter != drafter}
        self._berths = {key: berth for key, berth in self._berths.items() if key[0] != drafter}

    def time(self, drafter: str, k: int, tables: Rows[Rows[int]], context: int, repeats: int) -> float:
        """Seconds of a round over as many made-up sequences as there are ``tables``, each of ``context`` tokens: the
        fastest of some. ``drafter``: "" for plain decoding, with k 0."""
        lanes = next(count for count in LANES if count >= len(tables))
        hidden = self._reads(drafter)
        form = self._drafter(drafter).form(k, k, 1) if drafter else None
        key = RoundKey(drafter, lanes, form, False, self._reach(context), tuple(sorted(hidden)))
        work, berth, seconds = self._round(key), self._berth(key), []
        numbers, count = berth.lanes.numbers, len(tables)
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

    def _key(self, plan: Plan, behind: int = 0) -> RoundKey | None:
        """What to capture for ``plan``, whose sequences may be ``behind`` tokens further than the host knows."""
        names = {"" if choice is None else choice.drafter or "" for choice in plan.choices}
        if len(names) != 1 or not all(_plain(s) for s in plan.sequences):
            return None
        (name,) = names
        hidden = self._drafting.hidden(plan.sequences)
        if not self._drafts(plan, name) if name else hidden:
            return None
        lanes = next((count for count in LANES if count >= len(plan.sequences)), None)
        if lanes is None:
            return None
        cutoffs = any(_cuts_off(s) for s in plan.sequences)
        form = self._form(plan, name, lanes, cutoffs) if name else None
        if name and form is None:
            return None
        rows = lanes * (1 + (len(form.parents) if form else 0))
        if self._runner.rules.width(rows) != rows:
            return None
        end = max(len(s.tokens) for s in plan.sequences) + behind + max(self._most(lanes), rows // lanes)
        if end > self._runner.model.spec.max_len:
            return None
        return RoundKey(name, lanes, form, cutoffs, self._reach(end), hidden)

    def _form(self, plan: Plan, name: str, lanes: int, cutoffs: bool) -> Form | None:
        """What every lane drafts."""
        most, room = self._most(lanes) - 1, GRAPHED_ROWS // lanes - 1
        levels = min(most, max(choice.k for choice in plan.choices if choice is not None))
        width = max(s.row(name).width for s in plan.sequences)
        if levels < 1:
            return None
        if width > 1:
            nodes = max(s.decision.tree_nodes for s in plan.sequences)
            return self._drafter(name).form(levels, min(room, nodes), min(width, WIDEST))
        if lanes > 1 or cutoffs:
            levels = min(most, levels | 1)
        return self._drafter(name).form(levels, levels, 1)

    def _drafts(self, plan: Plan, name: str) -> bool:
        """Whether a drafter drafts in lanes, and has yet to do so."""
        return self._drafting.drafters[name].needs.lanes and all(name not in said for said in plan.said)

    def _ahead(self, plan: Plan, key: RoundKey) -> bool:
        """Whether nothing that decides on the next round needs to see this one."""
        drafters = self._drafting.drafters
        named = {name for s in plan.sequences for name in s.decision.drafters if name in drafters}
        if any(s.submission.params.logprobs is not None for s in plan.sequences):
            return False
        same = key.hidden == tuple(sorted(self._reads(key.drafter)))
        return same and all(drafters[name].needs.place == "device" for name in named)

    def _enter(self, plan: Plan, name: str, most: int) -> list[Entry] | None:
        """Every sequence's entry; ``None``, with everything as it was, where one cannot enter."""
        if not name:
            return [Entry(1)] * len(plan.sequences)
        drafter = self._drafter(name)
        entries: list[Entry] = []
        for s in plan.sequences:
            entry = drafter.enter(s.row(name), most)
            if entry is None:
                for other, taken in zip(plan.sequences, entries, strict=False):
                    row, known = other.row(name), len(other.tokens) - taken.fresh
                    drafter.leave(row, known)
                    if taken.states is not None:
                        row.hidden.append(known - 1, taken.states)
                return None
            entries.append(entry)
        return entries

    def _launch(self, flight: Flight, berth: Berth) -> Flight:
        flight.work.replay()
        flight.arrival = berth.read(flight.work.out)
        return flight

    def _round(self, key: RoundKey) -> Round:
        found = self._rounds.get(key)
        if found is None:
            berth = self._berth(key)
            berth.clear()
            drafter = self._drafter(key.drafter) if key.drafter else None
            reads = self._reads(key.drafter)
            found = self._rounds[key] = Round(self._runner, berth.lanes, drafter, reads, key, self._pool)
            berth.clear()
        return found

    def _berth(self, key: RoundKey) -> Berth:
        found = self._berths.get((key.drafter, key.lanes))
        if found is None:
            spec = self._runner.model.spec
            reads = self._reads(key.drafter)
            shape = LaneShape(key.lanes, self._most(key.lanes), spec.hidden_size * len(reads), self._pages)
            lanes = Lanes(shape, self._runner.kv, spec.dtype, spec.device)
            found = self._berths[key.drafter, key.lanes] = Berth(lanes, spec.device)
        return found

    def _reads(self, name: str) -> tuple[int, ...]:
        """The target's states that a drafter reads, in its order; none for plain decoding."""
        return self._drafting.drafters[name].needs.hidden if name else ()

    def _drafter(self, name: str) -> LaneDrafter:
        return cast(LaneDrafter, self._drafting.drafters[name])

    def _reach(self, end: int) -> int:
        """Up to where the keys of a round may reach whose last position is below ``end``."""
        return min(SHORT, self._limit) if end <= SHORT else self._limit

    @staticmethod
    def _most(lanes: int) -> int:
        """W for so many lanes."""
        return min(MOST, GRAPHED_ROWS // lanes)


def _limits(plan: Plan) -> list[int]:
    """Tokens that each sequence may draft."""
    limits = []
    for s, choice in zip(plan.sequences, plan.choices, strict=True):
        row = None if choice is None or choice.drafter is None else s.row(choice.drafter)
        limits.append(0 if choice is None or row is None else row.room if row.width > 1 else choice.k)
    return limits


def _plain(s: Sequence) -> bool:
    """Whether a sequence's tokens follow from logits, temperature, cut-offs and noise alone."""
    return len(s.pending) == 1 and not s.sampler.edits


def _cuts_off(s: Sequence) -> bool:
    """Whether a cut-off applies."""
    cut = s.sampler.cut
    return s.sampler.noise is not None and (cut.top_k > 0 or cut.top_p < 1.0 or cut.min_p > 0.0)
