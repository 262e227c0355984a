"""Rounds: draft, step, sample and walk of some sequences as one piece of captured work.

A step that goes through the host waits for it three times: for the draft, for the sampled tokens, for what to do next.
Where all sequences of a step draft chains with the same device drafter, or none, nothing of that needs the host: the
sequences stand in lanes (``drafters/lanes.py``), and a CUDA graph for each (drafter, lanes, K) goes from what the last
round committed to what this one commits. The next round may then be on its way before the host has read this one.

It is the same step: the same model, attention, noise and rule of acceptance, so that a sequence may change between
rounds and ordinary steps whenever it has to.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows

from specproxy.drafters.lanes import Entry
from specproxy.engine.berth import Order
from specproxy.engine.drafts import Plan
from specproxy.engine.flight import Flight, Outcome, Seat, Seats
from specproxy.engine.loaded import LoadedDrafters
from specproxy.engine.round_graphs import RoundGraphs
from specproxy.engine.round_shapes import RoundKey, RoundShapes
from specproxy.engine.runner import Runner
from specproxy.engine.sequence import Sequence


class Rounds:
    """Who sits in which lane, and rounds for them. Sequences keep their seats from one round to the next as long as the
    same ones go on with the same drafter. ``graphs``: the captured work."""

    def __init__(self, runner: Runner, loaded: LoadedDrafters, clock: Callable[[], float]) -> None:
        self._shapes = RoundShapes(runner, loaded)
        self.graphs = RoundGraphs(runner, loaded, self._shapes, clock)
        self._seats: Seats | None = None
        self._loaded = loaded
        self._clock = clock

    def start(self, plan: Plan) -> Flight | None:
        """Let a round go for the sequences of ``plan``, which take seats if they have none; ``None``, and nobody sits,
        where it is work for an ordinary step. Nothing may be aloft."""
        key = self._shapes.of(plan, self._sitting)
        lanes = self._seated(key, plan)
        if lanes is None:
            self.rise()
            lanes = None if key is None else self._sit(plan, key)
        if key is None or lanes is None or self._seats is None:
            return None
        return self._launch(plan, key, lanes, self._seats)

    def follow(self, flight: Flight, plan: Plan) -> Flight | None:
        """Let the next round of the same lanes go, with what is on its way still unread; ``None`` where it cannot."""
        key = self._shapes.of(plan, self._sitting, behind=flight.key.levels + 1)
        lanes = self._seated(key, plan)
        if key is None or lanes is None or self._seats is None or not self._shapes.may_follow(plan, key):
            return None
        unheard = Plan(plan.sequences, plan.choices, [{}] * len(plan.sequences))
        return self._launch(unheard, key, lanes, self._seats)

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
                self._loaded.for_lanes(seats.drafter).leave(seat.sequence.row(seats.drafter), seat.taken)
                if seat.in_step and seats.work.taps:
                    rows, names = _slice(seat.rows), (seats.drafter,)
                    self._loaded.feed(seat.sequence, seat.taken - 1, seats.work.taps, rows, names)

    def feed_others(self, flight: Flight, s: Sequence, outcome: Outcome) -> None:
        """Drafters that do not sit in the lanes get the states of what a sequence commits, before it does."""
        if flight.work.taps:
            others = [name for name in s.decision.drafters if name != flight.key.drafter]
            self._loaded.feed(s, len(s.tokens) - 1, flight.work.taps, _slice(outcome.rows), others)

    def draft(self, name: str, sequences: Rows[Sequence], levels: int) -> list[list[int]] | None:
        """Chains of at most so many tokens for sequences that then take part in an ordinary step; ``None`` where the
        drafter does not draft in lanes, or there are no lanes for so many. Nobody may sit."""
        key = self._shapes.of_draft(name, sequences, levels)
        if key is None:
            return None
        levels = min(levels, key.drafted)
        work, berth = self.graphs.draft(key), self.graphs.berth(key)
        entries = self._enter(sequences, name, berth.lanes.shape.most)
        if entries is None:
            return None
        berth.fill(sequences, entries, [Order(levels)] * len(sequences))
        work.replay()
        found = berth.read(work.out).wait()[: len(sequences)].tolist()
        for s in sequences:
            self._loaded.for_lanes(name).leave(s.row(name), len(s.tokens))
        return [row[1 : 1 + levels] for row in found]

    def forget(self, drafter: str) -> None:
        """A drafter is unloaded. Nothing may be aloft."""
        self.rise()
        self.graphs.forget(drafter)

    @property
    def _sitting(self) -> str:
        """The drafter that sits in the lanes; "" where none does."""
        return "" if self._seats is None else self._seats.drafter

    def _seated(self, key: RoundKey | None, plan: Plan) -> list[int] | None:
        """The lanes of the plan's sequences, where they sit as ``key`` wants them, whose work is captured."""
        seats = self._seats
        if key is None or seats is None or (key.drafter, key.lanes) != (seats.drafter, seats.lanes):
            return None
        return seats.lanes_of(plan.sequences) if key in self.graphs else None

    def _sit(self, plan: Plan, key: RoundKey) -> list[int] | None:
        """Give every sequence a seat; their lanes."""
        self.graphs.round(key)  # captured before anybody sits: capturing runs the work
        berth = self.graphs.berth(key)
        entries = self._enter(plan.sequences, key.drafter, berth.lanes.shape.most)
        if entries is None:
            return None
        berth.fill(plan.sequences, entries, _orders(plan, key))
        seats: list[Seat | None] = [Seat(s, len(s.tokens), 0) for s in plan.sequences]
        self._seats = Seats(key.drafter, key.lanes, seats)
        return list(range(len(seats)))

    def _enter(self, sequences: Rows[Sequence], name: str, most: int) -> list[Entry] | None:
        """Every sequence's entry; ``None``, with everything as it was, where one cannot enter."""
        if not name:
            return [Entry(1)] * len(sequences)
        drafter = self._loaded.for_lanes(name)
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
        berth, orders = self.graphs.berth(key), _orders(plan, key)
        by_lane = [Order(0)] * len(seats.seats)
        for lane, order in zip(lanes, orders, strict=True):
            by_lane[lane] = order
        berth.refresh(seats.sequences, by_lane)
        ahead = self._shapes.may_follow(plan, key)
        flight = Flight(plan, lanes, seats, key, self.graphs.round(key), orders, ahead, self._clock())
        flight.launch(berth)
        return flight


def _slice(rows: list[int]) -> slice | list[int]:
    """The same rows, without an index on the device where they lie side by side."""
    side_by_side = rows == list(range(rows[0], rows[0] + len(rows))) if rows else False
    return slice(rows[0], rows[0] + len(rows)) if side_by_side else rows


def _orders(plan: Plan, key: RoundKey) -> list[Order]:
    """What each sequence is to do."""
    orders = []
    for s, choice, guess in zip(plan.sequences, plan.choices, plan.guesses, strict=True):
        row = None if choice is None or choice.drafter is None else s.row(choice.drafter)
        if guess is not None:
            given = tuple(guess.tokens[: key.nodes])
            orders.append(Order(len(given), given))
        else:
            orders.append(Order(0 if choice is None or row is None else row.room if row.width > 1 else choice.k))
    return orders
