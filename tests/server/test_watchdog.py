"""When an engine counts as hung."""

from __future__ import annotations

import asyncio

import pytest

from specproxy.server.watchdog import Watchdog


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A fake one."""
    return Clock()


def test_silence_beyond_the_limit_is_hanging(clock: Clock) -> None:
    """And not one second before; whatever is heard begins its time anew."""
    dog = Watchdog(10.0, clock)
    clock.now += 10.0
    assert not dog.hung(expected=True)
    clock.now += 0.1
    assert dog.hung(expected=True)
    dog.heard()
    assert not dog.hung(expected=True)


def test_who_is_not_expected_to_speak_does_not_hang(clock: Clock) -> None:
    """While an engine starts or loads a drafter; its time begins when it is expected again."""
    dog = Watchdog(10.0, clock)
    clock.now += 600.0
    assert not dog.hung(expected=False)
    clock.now += 9.0
    assert not dog.hung(expected=True)
    clock.now += 2.0
    assert dog.hung(expected=True)


async def test_a_look_that_comes_late_says_nothing_of_the_engine(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process stood still for an hour: the engine gets its whole time again."""
    dog, slept = Watchdog(8.0, clock), []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += 3600.0 if len(slept) == 1 else seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await dog.wait(lambda: True)
    assert slept[0] == 1.0
    assert len(slept) == 10
