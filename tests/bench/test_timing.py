"""Clocks, and in which order they run."""

from __future__ import annotations

from specproxy.bench.timing import Timing, WallClock, Work, interleaved, read_bandwidth


class Scripted:
    """A clock whose works say how long they took."""

    def seconds(self, work: Work) -> float:
        """What the work says."""
        took = work()
        assert isinstance(took, float)
        return took


def test_a_timing_is_the_median_with_its_spread() -> None:
    """One slow run moves neither the median nor the lower end."""
    timing = Timing.of([3.0, 1.0, 2.0, 1.0, 100.0])
    assert (timing.median, timing.p10, timing.runs) == (2.0, 1.0, 5)
    assert timing.p90 > 50


def test_works_take_turns_and_each_begins_as_often() -> None:
    """What the machine does meanwhile meets all works alike."""
    asked: list[str] = []

    def named(name: str, seconds: float) -> Work:
        return lambda: asked.append(name) or seconds

    times = interleaved({"a": named("a", 1.0), "b": named("b", 2.0)}, Scripted(), 4)
    assert "".join(asked) == "abab" + "abbaabba"
    assert {name: (timing.median, timing.runs) for name, timing in times.items()} == {"a": (1.0, 4), "b": (2.0, 4)}


def test_memory_is_read_at_some_speed() -> None:
    """Between a hundred MB/s and a hundred TB/s."""
    assert 1e8 < read_bandwidth("cpu") < 1e14
    assert WallClock().seconds(lambda: None) >= 0
