"""How long a piece of work takes on the device that does it, and how fast that device reads its memory.

On a GPU: events around the work, enqueued while the device is still busy with something else, so that neither launches
nor the host's own work between them count; what it is busy with reads more memory than any cache holds. On a CPU: wall
clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from msgspec import Struct

Work = Callable[[], object]

AHEAD_BYTES = 2**30
"""Read before each measurement on a GPU, ``AHEAD_TIMES``: some 2 ms, in which the host enqueues what is measured."""
AHEAD_TIMES = 8

READ_BYTES = {"cuda": 2**33, "cpu": 2**28}
"""Read to measure the memory: several times what caches hold, long enough that its beginning counts for nothing."""
READ_RUNS = 7


class Timing(Struct, frozen=True):
    """Seconds: the median of all runs, their 10th and 90th percentile."""

    median: float
    p10: float
    p90: float
    runs: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """From single runs, at least one."""
        p10, median, p90 = (float(x) for x in np.percentile(np.asarray(seconds, np.float64), (10, 50, 90)))
        return cls(median, p10, p90, len(seconds))


class Clock(Protocol):
    """Times work on one device."""

    def seconds(self, work: Work) -> float:
        """One run of ``work``, whole."""
        ...


class WallClock:
    """For a CPU, whose work is over when the call returns."""

    def seconds(self, work: Work) -> float:
        """See Clock."""
        began = time.perf_counter()
        work()
        return time.perf_counter() - began


class EventClock:
    """For a GPU: see the module's text."""

    def __init__(self, device: str) -> None:
        self._ahead = _random(AHEAD_BYTES, device)

    def seconds(self, work: Work) -> float:
        """See Clock."""
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(AHEAD_TIMES):
            self._ahead.sum()
        begun.record()
        work()
        ended.record()
        ended.synchronize()
        return float(begun.elapsed_time(ended)) / 1000


def make_clock(device: str) -> Clock:
    """The clock of a device."""
    return EventClock(device) if device.startswith("cuda") else WallClock()


def wait_for(device: str) -> None:
    """Until all that was enqueued is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def interleaved(works: Mapping[str, Work], clock: Clock, runs: int) -> dict[str, Timing]:
    """Every work ``runs`` times, in turns that begin with another one each time, after two that do not count."""
    names = list(works)
    for _ in range(2):
        for work in works.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(runs):
        at = turn % len(names)
        for name in [*names[at:], *names[:at]]:
            seconds[name].append(clock.seconds(works[name]))
    return {name: Timing.of(times) for name, times in seconds.items()}


def read_bandwidth(device: str) -> float:
    """Bytes per second at which a plain sum reads memory: the best of a few runs."""
    clock = make_clock(device)
    data = _random(READ_BYTES["cuda" if device.startswith("cuda") else "cpu"], device)
    best = min(clock.seconds(data.sum) for _ in range(READ_RUNS))
    return data.numel() * data.element_size() / best


def find_device(wanted: str) -> str:
    """The device of a configuration's word for it."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """What the device is called; empty for a CPU, which is named among the machine's facts."""
    return str(torch.cuda.get_device_name(device)) if device.startswith("cuda") else ""


def _random(size: int, device: str) -> torch.Tensor:
    """Numbers of ``size`` bytes in all. Random ones: memory that moves zeros alone draws less power."""
    return torch.empty(size // 8, dtype=torch.int64, device=device).random_()
