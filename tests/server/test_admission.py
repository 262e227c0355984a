"""Admission: places are bounded, and who is refused learns when to come back."""

from __future__ import annotations

import asyncio

import pytest

from specproxy.errors import InvalidRequest, QueueFull
from specproxy.server.admission import Admission


class Clock:
    """Time that only moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


async def test_a_request_beyond_the_limit_is_refused_and_places_come_back() -> None:
    """The limit binds while requests are in flight and no longer."""
    admission = Admission(2)
    with admission.enter(), admission.enter(), pytest.raises(QueueFull):
        admission.enter()
    assert admission.depth == 0
    with admission.enter():
        assert admission.depth == 1


async def test_every_sequence_of_a_request_takes_a_place() -> None:
    """Growing a ticket counts its sequences, and a refused growth leaves the ticket as it was."""
    admission = Admission(4)
    with admission.enter() as first:
        first.grow_to(3)
        assert admission.depth == 3
        with admission.enter() as second:
            with pytest.raises(QueueFull):
                second.grow_to(2)
            assert admission.depth == 4
        assert admission.depth == 3
    assert admission.depth == 0


async def test_a_request_that_could_never_fit_is_a_bad_request() -> None:
    """No retry would help a request with more sequences than the server has places."""
    admission = Admission(4)
    with admission.enter() as ticket, pytest.raises(InvalidRequest, match="5 answers"):
        ticket.grow_to(5)


async def test_the_wait_follows_the_drain_rate_with_jitter_upwards() -> None:
    """At ten endings a second, two places are free in 0.2 s; jitter adds up to half of it."""
    clock = Clock()
    admission = Admission(1, clock)
    for _ in range(20):
        with admission.enter():
            clock.now += 0.1
    waits = [admission.retry_after_s(2) for _ in range(50)]
    assert 0.18 <= min(waits) < max(waits) <= 0.35


async def test_the_wait_without_any_ending_is_about_a_second() -> None:
    """A server that has finished nothing yet cannot know its rate."""
    assert 1.0 <= Admission(1).retry_after_s(1) <= 1.5


async def test_wait_idle_returns_when_the_last_place_is_given_back() -> None:
    """A drain waits for exactly that."""
    admission = Admission(2)
    ticket = admission.enter()
    waiting = asyncio.create_task(admission.wait_idle())
    await asyncio.sleep(0)
    assert not waiting.done()
    with ticket:
        pass
    await asyncio.wait_for(waiting, 1)
