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
from typing import TypeVar, cast

import torch

from specproxy.drafters.forms import Form
from specproxy.drafters.lanes import Entry, LaneDrafter, Lanes, LaneShape
from specproxy.engine.berth import Berth
from specproxy.engine.captured_round import DraftRound, Round, RoundKey
from specproxy.engine.drafting import Drafting, Plan
from specproxy.engine.flight import Flight, Outcome, Seat, Seats
from specproxy.engine.graphs import free_bytes
from specproxy.engine.runner import GRAPHED_ROWS, Runner
from specproxy.engine.sequence import Sequence
from specproxy.engine.step_shapes import SHORT

Work = TypeVar("Work", Round, DraftRound)

MOST = 8
"""Tokens that a round commits to a lane at most; a chain has one fewer."""

USUAL_LANES = 8
"""Lanes up to which a drafter's rounds are captured at start."""

WIDEST = 2
"""Children of a node at most: what is drawn on the device is the two best."""

LANES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of lanes that rounds are captured for. For several lanes, and where there are cut-offs, chains have an odd K,
as a graph takes a third of a second to capture; each lane's own K is a limit beneath it."""


class Rounds:
    """All rounds of a target. Between two steps of the loop at most one flight is ``aloft``; sequences keep their seats
    from one round to the next as long as the same ones go on with the same drafter. ``bytes``: of the device's memory,
    what captures took."""

    def __init__(self, runner: Runner, drafting: Drafting, clock: Callable[[], float]) -> None:
        self.aloft: Flight | None = None
        self.bytes = 0
        self._seats: Seats | None = None
        self._runner = runner
        self._drafting = drafting
        self._clock = clock
        self._limit = runner.model.spec.max_len + runner.kv.page_size
        self._pages = -(-self._limit // runner.kv.page_size) + 1
        self._berths: dict[tuple[str, int], Berth] = {}
        self._rounds: dict[RoundKey, Round] = {}
        self._drafting_alone: dict[RoundKey, DraftRound] = {}
        self._pool = torch.cuda.graph_pool_handle() if runner.model.spec.captured else None

    def start(self, plan: Plan) -> Flight | None:
        """Let a round go for the sequences of ``plan``, which take seats if they have none; ``None``, and nobody sits,
        where it is work for an ordinary step. Nothing may be aloft."""
        key = self._key(plan)
        lanes = self._seated(key, plan)
        if lanes is None:
            self.rise()
            lanes = None if key is None else self._sit(plan, key)
        if key is None or lanes is None or self._seats is None:
            return None
        return self._launch(plan, key, lanes, self._seats)

    def follow(self, flight: Flight, plan: Plan) -> Flight | None:
        """Let the next round of the same lanes go, with what is on its way still unread; ``None`` where it cannot."""
        key = self._key(plan, behind=flight.key.levels + 1)
        lanes = self._seated(key, plan)
        if key is None or lanes is None or self._seats is None or not self._ahead(plan, key):
            return None
        return self._launch(plan, key, lanes, self._seats)

    def unseat(self, sequence: Sequence) -> None:
        """A sequence's pages are given up."""
        if self._seats is not None:
            self._seats.leave(sequence)

    def rise(self) -> None:
        """Everybody goes on in ordinary steps. Nothing may be aloft."""
        seats, self._seats = self._seats, None
        if seats is None or seats.work is None or not seats.drafter:
            return
        for seat in seats.seats:
            if seat is not None:
                self._drafter(seats.drafter).leave(seat.sequence.row(seats.drafter), seat.taken)
                if seat.in_step and seats.work.taps:
                    rows, names = _slice(seat.rows), (seats.drafter,)
                    self._drafting.feed(seat.sequence, seat.taken - 1, seats.work.taps, rows, names)

    def feed_others(self, flight: Flight, s: Sequence, outcome: Outcome) -> None:
        """Drafters that do not sit in the lanes get the states of what a sequence commits, before it does."""
        if flight.work.taps:
            others = [name for name in s.decision.drafters if name != flight.key.drafter]
            self._drafting.feed(s, len(s.tokens) - 1, flight.work.taps, _slice(outcome.rows), others)

    def draft(self, name: str, sequences: Rows[Sequence], levels: int) -> list[list[int]] | None:
        """Chains of at most so many tokens for sequences that then take part in an ordinary step; ``None`` where the
        drafter does not draft in lanes, or there are no lanes for so many. Nobody may sit."""
        lanes = next((count for count in LANES if count >= len(sequences)), None)
        if lanes is None or not self._drafting.drafters[name].needs.lanes or not all(map(_plain, sequences)):
            return None
        most, end = self._most(lanes) - 1, max(len(s.tokens) for s in sequences) + MOST
        levels = min(levels, most)
        if levels < 1 or end > self._runner.model.spec.max_len:
            return None
        form = self._drafter(name).form(min(most, levels | 1), MOST, 1)
        key = RoundKey(name, lanes, form, any(map(_cuts_off, sequences)), self._reach(end), ())
        work, berth = self._draft_round(key), self._berth(key)
        entries = self._enter(sequences, name, berth.lanes.shape.most)
        if entries is None:
            return None
        berth.fill(sequences, entries, [levels] * len(sequences))
        work.replay()
        found = berth.read(work.out).wait()[: len(sequences)].tolist()
        for s in sequences:
            self._drafter(name).leave(s.row(name), len(s.tokens))
        return [row[1 : 1 + levels] for row in found]

    def forget(self, drafter: str) -> None:
        """A drafter is unloaded. Nothing may be aloft."""
        self.rise()
        self._drafting_alone = {key: work for key, work in self._drafting_alone.items() if key.drafter != drafter}
        self._rounds = {key: work for key, work in self._rounds.items() if key.drafter != drafter}
        self._berths = {key: berth for key, berth in self._berths.items() if key[0] != drafter}

    def prepare(self, drafter: str, sequences: int) -> None:
        """Capture what an ordinary run of up to so many sequences needs, so that nobody waits for it: chains of all
        lengths that ``_form`` gives, with cut-offs and without, in contexts up to SHORT. "": plain decoding."""
        if self._pool is None:
            return
        reach, hidden = self._reach(0), tuple(sorted(self._reads(drafter)))
        for lanes in [count for count in LANES if count < 2 * sequences]:
            most = self._most(lanes) - 1
            if drafter and lanes > USUAL_LANES:
                break
            for cutoffs in (False, True):
                few = range(1, most + 1, 1 if lanes == 1 and not cutoffs else 2)
                levels = [k for k in few if k <= self._drafting.drafters[drafter].needs.max_k] if drafter else [0]
                for k in levels:
                    form = self._drafter(drafter).form(k, k, 1) if drafter else None
                    self._round(RoundKey(drafter, lanes, form, cutoffs, reach, hidden))
                    if drafter and k % 2:
                        self._draft_round(RoundKey(drafter, lanes, form, cutoffs, reach, ()))

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
        names = {choice.drafter for choice in plan.choices if choice is not None and choice.drafter is not None}
        if len(names) > 1 or not all(map(_plain, plan.sequences)):
            return None
        name = names.pop() if names else ""
        if name and not all(name in s.decision.drafters for s in plan.sequences):
            return None
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

    def _seated(self, key: RoundKey | None, plan: Plan) -> list[int] | None:
        """The lanes of the plan's sequences, where they sit as ``key`` wants them, whose work is captured."""
        seats = self._seats
        if key is None or seats is None or (key.drafter, key.lanes) != (seats.drafter, seats.lanes):
            return None
        return seats.lanes_of(plan.sequences) if key in self._rounds else None

    def _sit(self, plan: Plan, key: RoundKey) -> list[int] | None:
        """Give every sequence a seat; their lanes."""
        self._round(key)  # captured before anybody sits: capturing runs the work
        berth = self._berth(key)
        entries = self._enter(plan.sequences, key.drafter, berth.lanes.shape.most)
        if entries is None:
            return None
        berth.fill(plan.sequences, entries, _limits(plan))
        seats: list[Seat | None] = [Seat(s, len(s.tokens), 0) for s in plan.sequences]
        self._seats = Seats(key.drafter, key.lanes, seats)
        return list(range(len(seats)))

    def _enter(self, sequences: Rows[Sequence], name: str, most: int) -> list[Entry] | None:
        """Every sequence's entry; ``None``, with everything as it was, where one cannot enter."""
        if not name:
            return [Entry(1)] * len(sequences)
        drafter = self._drafter(name)
        entries: list[Entry] = []
        for s in sequences:
            entry = drafter.enter(s.row(name), most)
            if entry is None:
                for other, given in zip(sequences, entries, strict=False):
                    row, taken = other.row(name), len(other.tokens) - given.fresh
                    drafter.leave(row, taken)
                    if given.states is not None:
                        row.hidden.append(taken - 1, given.states)
                return None
            entries.append(entry)
        return entries

    def _launch(self, plan: Plan, key: RoundKey, lanes: list[int], seats: Seats) -> Flight:
        berth, limits = self._berth(key), _limits(plan)
        by_lane = [0] * len(seats.seats)
        for lane, limit in zip(lanes, limits, strict=True):
            by_lane[lane] = limit
        berth.refresh(seats.sequences, by_lane)
        ahead = self._ahead(plan, key)
        flight = Flight(plan, lanes, seats, key, self._rounds[key], limits, ahead, self._clock())
        flight.launch(berth)
        return flight

    def _round(self, key: RoundKey) -> Round:
        found = self._rounds.get(key)
        if found is None:
            drafter = self._drafter(key.drafter) if key.drafter else None
            reads = self._reads(key.drafter)
            found = self._rounds[key] = self._capture(
                key, lambda lanes: Round(self._runner, lanes, drafter, reads, key, self._pool)
            )
        return found

    def _draft_round(self, key: RoundKey) -> DraftRound:
        found = self._drafting_alone.get(key)
        if found is None:
            drafter = self._drafter(key.drafter)
            found = self._drafting_alone[key] = self._capture(
                key, lambda lanes: DraftRound(lanes, drafter, key, self._pool)
            )
        return found

    def _capture(self, key: RoundKey, make: Callable[[Lanes], Work]) -> Work:
        """Work over empty lanes, as making it runs it; what that takes of the device's memory is counted."""
        berth, device = self._berth(key), self._runner.model.spec.device
        berth.clear()
        before = free_bytes(device) if self._pool is not None else 0
        work = make(berth.lanes)
        berth.clear()
        if self._pool is not None:
            self.bytes += max(0, before - free_bytes(device))
        return work

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


def _slice(rows: list[int]) -> slice | list[int]:
    """The same rows, without an index on the device where they lie side by side."""
    side_by_side = rows == list(range(rows[0], rows[0] + len(rows))) if rows else False
    return slice(rows[0], rows[0] + len(rows)) if side_by_side else rows


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
