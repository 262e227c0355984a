"""One change of drafters at a time, and what a next engine process is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from specproxy.config.schema import DrafterConfig
from specproxy.errors import EngineFailed, EngineUnavailable, IllegalMove, ModelLoadError
from specproxy.server.drafter_swaps import DrafterSwaps
from specproxy.vocabulary import DrafterInfo
from specproxy.wire.frames import DrafterChanged, LoadDrafter, UnloadDrafter

NGRAM = DrafterConfig(type="ngram", max_k=4, options={"max_n": 3})
STARTED = [DrafterInfo("old", "ngram", 63, None, "f0")]


class Line:
    """What was sent to an engine, which a test answers for. ``up``: whether there is one."""

    def __init__(self) -> None:
        self.sent: list[LoadDrafter | UnloadDrafter] = []
        self.up = True
        self.swaps = DrafterSwaps(self.send)

    def send(self, frame: LoadDrafter | UnloadDrafter) -> bool:
        """Take a frame."""
        if self.up:
            self.sent.append(frame)
        return self.up

    async def through(self, change: Coroutine[Any, Any, Any], *answers: Callable[[], None]) -> Any:
        """What becomes of a change to whose frames the engine gives these answers."""
        task = asyncio.ensure_future(change)
        for answer in answers:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            answer()
        return await task

    def has(self, *names: str) -> Callable[[], None]:
        """The engine answers that it has these now."""
        infos = [DrafterInfo(name, "ngram", 63, None, f"f-{name}") for name in names]
        return lambda: self.swaps.answered(DrafterChanged(infos))

    def says(self, error: str) -> Callable[[], None]:
        """The engine refuses."""
        return lambda: self.swaps.answered(DrafterChanged(STARTED, error))


async def test_a_load_is_sent_whole_and_remembered() -> None:
    """Path, K and options in one frame; a next engine is asked for it, and policies may name it meanwhile."""
    line = Line()
    await line.through(line.swaps.load("new", NGRAM), line.has("old", "new"))
    assert line.sent == [LoadDrafter("new", "ngram", {"path": "", "max_k": 4, "max_n": 3})]
    assert line.swaps.differs(STARTED)
    assert [info.name for info in line.swaps.known(STARTED)] == ["old", "new"]
    found = await line.through(line.swaps.restore(STARTED), line.has("old", "new"))
    assert [info.name for info in found] == ["old", "new"]
    assert line.sent[1:] == line.sent[:1]


async def test_a_refusal_changes_nothing() -> None:
    """Its words are the engine's; a next engine is not asked."""
    line = Line()
    with pytest.raises(ModelLoadError, match="guesses 1 %"):
        await line.through(line.swaps.load("new", NGRAM), line.says("guesses 1 %"))
    assert not line.swaps.differs(STARTED)
    assert line.swaps.doing == ""


async def test_there_is_one_change_at_a_time() -> None:
    """The second is refused with the first one's name, and may come once that has ended."""
    line = Line()
    first = asyncio.ensure_future(line.swaps.load("new", NGRAM))
    await asyncio.sleep(0)
    with pytest.raises(IllegalMove, match="loading new"):
        await line.swaps.unload("old")
    line.has("old", "new")()
    await first
    await line.through(line.swaps.unload("old"), line.has("new"))
    assert line.swaps.unloaded == {"old"}
    await line.through(line.swaps.restore(STARTED), line.has(), line.has("new"))
    assert line.sent[-2:] == [UnloadDrafter("old"), line.sent[0]]


async def test_without_an_engine_nothing_is_changed() -> None:
    """It is said whether there is none, or it died over the change."""
    line = Line()
    with pytest.raises(EngineFailed, match="loading new"):
        await line.through(line.swaps.load("new", NGRAM), line.swaps.lost)
    line.up = False
    with pytest.raises(EngineUnavailable):
        await line.swaps.load("new", NGRAM)
    assert not line.swaps.differs(STARTED)
    assert line.swaps.doing == ""


async def test_a_drafter_that_is_refused_later_is_left_out_and_asked_for_again() -> None:
    """The others are loaded; the problem is kept in words, until an engine takes it."""
    line = Line()
    for name in ("a", "b"):
        await line.through(line.swaps.load(name, NGRAM), line.has("old", "a", name))
    await line.through(line.swaps.restore(STARTED), line.says("no such file"), line.has("old", "b"))
    assert line.swaps.problems == {"a": "no such file"}
    await line.through(line.swaps.restore(STARTED), line.has("old", "a"), line.has("old", "a", "b"))
    assert line.swaps.problems == {}


async def test_a_drafter_over_which_engines_die_is_left_out() -> None:
    """After the second death; an order to load it is another try."""
    line = Line()
    await line.through(line.swaps.load("new", NGRAM), line.has("old", "new"))
    for _ in range(2):
        assert line.swaps.differs(STARTED)
        with pytest.raises(EngineFailed):
            await line.through(line.swaps.restore(STARTED), line.swaps.lost)
    assert not line.swaps.differs(STARTED)
    assert "died" in line.swaps.problems["new"]
    await line.through(line.swaps.load("new", NGRAM), line.has("old", "new"))
    assert line.swaps.differs(STARTED)
    assert line.swaps.problems == {}
