"""Rounds on their way: one is read while the next is already computed, unless the host must see it first; then the next
is let go before anybody is told what the last one said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from specproxy.engine.answers import Answers
from specproxy.engine.controller import Controller
from specproxy.engine.drafting import Drafting
from specproxy.engine.drafts import Plan
from specproxy.engine.report import EngineTimes
from specproxy.engine.scheduler import Scheduler
from specproxy.vocabulary import Delta

if TYPE_CHECKING:
    from specproxy.engine.flight import Flight
    from specproxy.engine.rounds import Rounds


class Flying:
    """Lets rounds go and commits what they say. Between two steps of the loop at most one flight is ``aloft``."""

    def __init__(
        self,
        rounds: Rounds,
        scheduler: Scheduler,
        drafting: Drafting,
        controller: Controller,
        answers: Answers,
        times: EngineTimes,
        clock: Callable[[], float],
    ) -> None:
        self.rounds = rounds
        self.aloft: Flight | None = None
        self._scheduler = scheduler
        self._drafting = drafting
        self._controller = controller
        self._answers = answers
        self._times = times
        self._clock = clock
        self._landed = 0.0

    def start(self, plan: Plan) -> bool:
        """Let a round go for ``plan``; False where it is work for an ordinary step. Nothing may be aloft."""
        self.aloft = self.rounds.start(plan)
        return self.aloft is not None

    def may_go_on(self) -> bool:
        """Whether nobody else has to be served first, and every sequence has room for two more rounds."""
        flight, scheduler, sequences = self.aloft, self._scheduler, self._scheduler.decoding()
        if flight is None or not flight.ahead or scheduler.due or not flight.holds(sequences):
            return False
        if all(s.num_output + flight.expects(s) >= s.submission.params.max_tokens for s in sequences):
            return False  # as good as certain to be their last: nothing should be in the way of who comes next
        room = [len(s.tokens) + 2 * flight.reach for s in sequences]
        return all(scheduler.try_reserve(s, tokens) >= tokens for s, tokens in zip(sequences, room, strict=True))

    def go_on(self, plan: Plan) -> list[Delta]:
        """Let the next round go, if the same sequences go on alike; then commit what the last one said."""
        flight = self.aloft
        if flight is None:
            return []
        self.aloft = self.rounds.follow(flight, plan)
        flight.heard(plan)
        return self._read(flight)

    def land(self) -> list[Delta]:
        """Commit what is aloft; nothing follows it."""
        flight, self.aloft = self.aloft, None
        return [] if flight is None else self._read(flight)

    def _read(self, flight: Flight) -> list[Delta]:
        """Commit what a round said."""
        found = flight.wait()
        now = self._clock()
        seconds, self._landed = now - max(flight.began, self._landed), now
        self._controller.observe_round(flight.key.drafter, len(found), flight.key.drafted, flight.rows, seconds)
        self._times.add("decode", seconds)
        deltas = []
        for index, outcome in enumerate(found):
            if outcome is None:
                continue
            s = flight.plan.sequences[index]
            s.stats.device_s += seconds / sum(other is not None for other in found)
            self.rounds.feed_others(flight, s, outcome)
            s.computed += len(outcome.tokens)
            self._drafting.settle(s, flight.draft(index), range(len(outcome.tokens) - 1), outcome.tokens)
            deltas.append(self._answers.commit(s, outcome.tokens, flight.work.logits, outcome.rows))
        return deltas
