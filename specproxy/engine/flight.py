"""Sequences in lanes, and a round of theirs on its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from specproxy.engine.berth import Arrival, Berth, Order
from specproxy.engine.captured_round import Round
from specproxy.engine.drafts import Draft, Plan
from specproxy.engine.round_shapes import RoundKey
from specproxy.engine.sequence import Sequence


class Outcome(NamedTuple):
    """What a sequence gets by a round: tokens, and the rows of logits and states at which each was sampled."""

    tokens: list[int]
    rows: list[int]


@dataclass
class Seat:
    """A lane's sequence. ``known``: its committed tokens on the device after the last round that was read. ``taken``:
    those that the drafter had taken in by then; ``rows``: where the last round's states of the others are."""

    sequence: Sequence
    known: int
    taken: int
    rows: list[int] = field(default_factory=list)

    @property
    def in_step(self) -> bool:
        """Whether the lane holds what the sequence does."""
        return self.known == len(self.sequence.tokens)


@dataclass
class Seats:
    """Who sits in which lane; ``None``: nobody any more. ``work``: the last round that was read."""

    drafter: str
    lanes: int
    seats: list[Seat | None]
    work: Round | None = None

    @property
    def sequences(self) -> list[Sequence | None]:
        """By lane."""
        return [None if seat is None else seat.sequence for seat in self.seats]

    def lanes_of(self, sequences: list[Sequence]) -> list[int] | None:
        """The lanes of these sequences, in order, where all of them sit and are in step, and nobody else sits."""
        found = [lane for lane, seat in enumerate(self.seats) if seat is not None and seat.in_step]
        seated = [seat.sequence for seat in self.seats if seat is not None]
        return found if len(found) == len(seated) and seated == sequences else None

    def leave(self, sequence: Sequence) -> None:
        """Its pages are given up."""
        self.seats = [None if seat is None or seat.sequence is sequence else seat for seat in self.seats]


@dataclass
class Flight:
    """A round on its way, of ``work``, for the sequences of ``plan`` in ``lanes``. ``orders``: what each of them is to
    do. ``ahead``: the next one may start before this one is read. ``began``: seconds."""

    plan: Plan
    lanes: list[int]
    seats: Seats
    key: RoundKey
    work: Round
    orders: list[Order]
    ahead: bool
    began: float
    arrival: Arrival | None = None

    def launch(self, berth: Berth) -> None:
        """Let it go."""
        self.work.replay()
        self.arrival = berth.read(self.work.out)

    @property
    def rows(self) -> int:
        """Rows of the target's step."""
        return self.key.lanes * (self.key.nodes + 1)

    @property
    def reach(self) -> int:
        """Positions behind the known tokens that it may write to."""
        return max(self.key.levels, self.key.nodes) + 1

    def expects(self, sequence: Sequence) -> float:
        """Tokens that a sequence of its plan gets on average."""
        choices = zip(self.plan.sequences, self.plan.choices, strict=True)
        return next((c.expected for s, c in choices if s is sequence and c is not None), 1.0)

    def holds(self, sequences: list[Sequence]) -> bool:
        """Whether just these sit in its lanes, and every round before it has been read."""
        return bool(sequences) and self.seats.lanes_of(sequences) is not None

    def wait(self) -> list[Outcome | None]:
        """What each sequence gets, once it is there; ``None`` for one that is gone, or ended or failed with what an
        earlier round said."""
        if self.arrival is None:
            raise RuntimeError("a round is read that was never launched")
        numbers, found = self.arrival.wait().tolist(), []
        for lane in self.lanes:
            seat, row = self.seats.seats[lane], numbers[lane]
            first, most, count = lane * (self.key.nodes + 1), len(row) // 2, row[0]
            outcome = Outcome(row[1 : 1 + count], [first + at for at in row[1 + most : 1 + most + count]])
            found.append(outcome if seat is not None and seat.in_step else None)
            if seat is not None:
                seat.taken, seat.rows = seat.known, outcome.rows
                seat.known += count
        self.seats.work = self.work
        return found

    def draft(self, index: int) -> Draft:
        """What a sequence of the plan drafted; which tokens these were, if a device drafter's, nobody asks any more."""
        s, choice, said = self.plan.sequences[index], self.plan.choices[index], self.plan.said[index]
        form, order = self.key.verified, self.orders[index]
        if self.key.drafter:
            s.row(self.key.drafter).seen = len(s.tokens)
        if form is None or choice is None or choice.drafter is None:
            return Draft([], [], None, said)
        s.row(choice.drafter).k, nodes = choice.k, min(order.limit, self.key.nodes)
        return Draft(list(order.given) or [0] * nodes, list(form.parents[:nodes]), choice, said)

    def heard(self, plan: Plan) -> None:
        """What host drafters say now, before this round is read, is about the text that it went on from."""
        said = {s.id: told for s, told in zip(plan.sequences, plan.said, strict=True)}
        self.plan.said = [said.get(s.id, {}) for s in self.plan.sequences]
