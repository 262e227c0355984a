"""All sequences of a request as one stream: merging, waking, and giving up what nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from specproxy.backend import Deliver
from specproxy.errors import EngineUnavailable
from specproxy.server.generation import Generation
from specproxy.vocabulary import Decision, Delta, SamplingParams, Submission


class ByHand:
    """A backend whose deltas the test delivers. ``refuses``: the id whose start raises."""

    name = "by hand"
    ready = True

    def __init__(self, refuses: str = "") -> None:
        self.deliver: dict[str, Deliver] = {}
        self.cancelled: list[str] = []
        self.finished: list[str] = []
        self._refuses = refuses

    def start(self, submission: Submission, deliver: Deliver) -> None:
        """Remember whom to tell."""
        if submission.id == self._refuses:
            raise EngineUnavailable("no")
        self.deliver[submission.id] = deliver

    def finish(self, sequence_id: str) -> None:
        """Note it."""
        self.finished.append(sequence_id)

    def cancel(self, sequence_id: str) -> None:
        """Note it."""
        self.cancelled.append(sequence_id)

    async def close(self) -> None:
        """Nothing is held."""


def submissions(*ids: str) -> Sequence[Submission]:
    """One for each id."""
    return [Submission(each, [1], 7, SamplingParams(), Decision("r", "x")) for each in ids]


async def test_a_slow_reader_gets_one_merged_delta() -> None:
    """What piles up while nobody reads costs one delta a sequence, however many arrived."""
    backend = ByHand()
    async with Generation(backend, submissions("a", "b")) as generation:
        for token in range(100):
            backend.deliver["a"](Delta("a", [token]))
        backend.deliver["b"](Delta("b", [7], finish_reason="stop"))
        batch = await generation.take()
        assert [(index, delta.tokens) for index, delta in batch] == [(0, list(range(100))), (1, [7])]
        assert generation.running
        backend.deliver["a"](Delta("a", [100], finish_reason="length"))
        assert [(index, delta.tokens) for index, delta in await generation.take()] == [(0, [100])]
        assert not generation.running
    assert backend.cancelled == []


async def test_a_reader_that_waits_is_woken_by_the_next_delta() -> None:
    """take() waits when there is nothing, and says so after a while."""
    backend = ByHand()
    async with Generation(backend, submissions("a")) as generation:
        assert await generation.take(idle_s=0.001) == []
        waiting = asyncio.create_task(generation.take())
        await asyncio.sleep(0)
        backend.deliver["a"](Delta("a", [5]))
        [(_, delta)] = await asyncio.wait_for(waiting, 1)
        assert delta.tokens == [5]


async def test_what_still_runs_is_cancelled() -> None:
    """Leaving early aborts sequences that have not ended, and only those."""
    backend = ByHand()
    async with Generation(backend, submissions("a", "b")):
        backend.deliver["a"](Delta("a", [5], finish_reason="stop"))
    assert backend.cancelled == ["b"]


async def test_a_refused_start_cancels_the_others() -> None:
    """A request is worked on as a whole or not at all."""
    backend = ByHand(refuses="b")
    with pytest.raises(EngineUnavailable):
        async with Generation(backend, submissions("a", "b")):
            pass
    assert "a" in backend.cancelled
