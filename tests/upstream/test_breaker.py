"""The breaker by itself, with a clock that stands still until it is told."""

from __future__ import annotations

from specproxy.upstream.breaker import Breaker, BreakerState


class Clock:
    """Seconds, set by hand."""

    now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def made(failures: int = 3) -> tuple[Breaker, Clock, list[BreakerState]]:
    """A breaker that opens for 10 seconds, its clock, and the states it went through."""
    clock, states = Clock(), list[BreakerState]()
    return Breaker(failures, 10.0, clock, states.append), clock, states


def fail(breaker: Breaker, times: int) -> None:
    """So many failed requests."""
    for _ in range(times):
        assert breaker.enter()
        breaker.failed()


def test_it_opens_after_failures_in_a_row_and_no_sooner() -> None:
    """A complete answer between them starts the count again."""
    breaker, _, states = made()
    fail(breaker, 2)
    breaker.completed()
    fail(breaker, 2)
    assert (breaker.state, states) == ("closed", [])
    fail(breaker, 1)
    assert states == ["open"]
    assert not breaker.enter()


def test_an_answer_that_is_not_complete_does_not_start_the_count_again() -> None:
    """Neither does an error of the client's: streams that die, and bad requests between failures, hide nothing."""
    breaker, _, states = made()
    for _ in range(3):
        assert breaker.enter()
        breaker.answered()
        breaker.failed()
    assert states == ["open"]


def test_after_the_wait_one_request_tries_and_others_wait_for_it() -> None:
    """Its answer closes the breaker."""
    breaker, clock, states = made()
    fail(breaker, 3)
    clock.now = 9.9
    assert not breaker.enter()
    clock.now = 10.0
    assert breaker.enter()
    assert not breaker.enter()
    assert breaker.wait_s > 0
    breaker.answered()
    assert states == ["open", "half_open", "closed"]
    assert breaker.enter()


def test_a_trial_that_fails_doubles_the_wait_up_to_eight_times() -> None:
    """And one that succeeds starts over."""
    breaker, clock, _ = made()
    fail(breaker, 3)
    waits = []
    for _ in range(5):
        waits.append(breaker.wait_s)
        clock.now += breaker.wait_s
        fail(breaker, 1)
    assert waits == [10, 20, 40, 80, 80]
    clock.now += 80
    assert breaker.enter()
    breaker.answered()
    fail(breaker, 3)
    assert breaker.wait_s == 10


def test_a_trial_that_nobody_waits_for_any_more_makes_room_for_another() -> None:
    """Nothing was learned from it."""
    breaker, clock, _ = made()
    fail(breaker, 3)
    clock.now = 10.0
    assert breaker.enter()
    breaker.abandoned()
    assert breaker.state == "half_open"
    assert breaker.enter()
