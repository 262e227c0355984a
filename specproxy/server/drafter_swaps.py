"""Drafters that come and go while the server runs: the one change under way, and what a next engine must load again.

The engine answers each change with the drafters that it has then. It makes changes between its steps, in the order in
which they were sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog
from msgspec import Struct

from specproxy.config.schema import DrafterConfig
from specproxy.errors import EngineFailed, EngineUnavailable, IllegalMove, ModelLoadError
from specproxy.vocabulary import DrafterInfo
from specproxy.wire.frames import DrafterChanged, LoadDrafter, UnloadDrafter

MAX_DEATHS = 2
"""Engine processes that may die over loading a drafter again, before it is taken for the cause and left out."""

RESTORING = "loading again what was loaded before the engine started"


class LoadedLater(Struct, frozen=True):
    """A drafter that was loaded at run time. ``info``: what the engine said of it when it had it last."""

    config: DrafterConfig
    info: DrafterInfo


class DrafterSwaps:
    """What differs from the start configuration, and the change under way.

    ``declared``: the drafters of the start configuration; ``loaded``: those that were loaded since, which win;
    ``unloaded``: names that are gone. ``problems``: why a drafter of ``loaded`` is not there now, in words. ``doing``:
    the change under way, empty where there is none.
    """

    def __init__(self, send: Callable[[LoadDrafter | UnloadDrafter], bool]) -> None:
        """``send``: puts a frame on its way, or says no."""
        self.declared: Mapping[str, DrafterConfig] = {}
        self.loaded: dict[str, LoadedLater] = {}
        self.unloaded: set[str] = set()
        self.problems: dict[str, str] = {}
        self.doing = ""
        self._send = send
        self._deaths: dict[str, int] = {}
        self._answer: asyncio.Future[DrafterChanged] | None = None

    async def load(self, name: str, config: DrafterConfig) -> list[DrafterInfo]:
        """Load a drafter, or another one under a name; what is loaded then.

        Raises ModelLoadError in the engine's words, and then nothing has changed; EngineFailed where the engine died
        over it; IllegalMove while another change is under way; EngineUnavailable where there is no engine.
        """
        with self._alone(f"loading {name}"):
            present = await self._ask(_load(name, config))
            self._have(name, config, present)
            self.unloaded.discard(name)
        return present

    async def unload(self, name: str) -> list[DrafterInfo]:
        """Drop a drafter; what is loaded then. Raises as ``load`` does."""
        with self._alone(f"unloading {name}"):
            present = await self._ask(UnloadDrafter(name))
            self.loaded.pop(name, None)
            self.unloaded.add(name)
            self._forgive(name)
        return present

    def differs(self, present: Sequence[DrafterInfo]) -> bool:
        """Whether an engine that has just started, with these, lacks a change that was made before."""
        return bool(self._wanted() or self.unloaded & {info.name for info in present})

    async def restore(self, present: Sequence[DrafterInfo]) -> list[DrafterInfo]:
        """Make a new engine, which has ``present``, what the last one was; what is loaded then. A drafter that it
        refuses is left out, and ``problems`` says why. Raises EngineFailed where this engine dies too."""
        found = list(present)
        with self._alone(RESTORING):
            for name in sorted(self.unloaded & {info.name for info in present}):
                found = await self._ask(UnloadDrafter(name))
            for name in self._wanted():
                try:
                    found = await self._ask(_load(name, self.loaded[name].config))
                except ModelLoadError as refused:
                    self._missing(name, str(refused))
                except EngineFailed:
                    self._deaths[name] = self._deaths.get(name, 0) + 1
                    self._missing(name, "the engine died while it was loaded again")
                    raise
                else:
                    self._have(name, self.loaded[name].config, found)
        return found

    def known(self, present: Sequence[DrafterInfo]) -> list[DrafterInfo]:
        """What policies may name: what the engine has, and what it should have, so that a drafter whose files are out
        of reach for a while moves no route. Nothing drafts under such a name."""
        names = {info.name for info in present}
        return [*present, *(later.info for name, later in self.loaded.items() if name not in names)]

    def answered(self, frame: DrafterChanged) -> None:
        """The engine has made, or refused, the change."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(frame)

    def lost(self) -> None:
        """The engine is gone, and the change with it."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(EngineFailed(f"the engine ended while it was {self.doing}; nothing was changed"))

    def _wanted(self) -> list[str]:
        return [name for name in self.loaded if self._deaths.get(name, 0) < MAX_DEATHS]

    def _have(self, name: str, config: DrafterConfig, present: Sequence[DrafterInfo]) -> None:
        self.loaded[name] = LoadedLater(config, next(info for info in present if info.name == name))
        self._forgive(name)

    def _forgive(self, name: str) -> None:
        self._deaths.pop(name, None)
        self.problems.pop(name, None)

    def _missing(self, name: str, why: str) -> None:
        self.problems[name] = why
        structlog.get_logger().error("a drafter could not be loaded again", drafter=name, reason=why)

    async def _ask(self, frame: LoadDrafter | UnloadDrafter) -> list[DrafterInfo]:
        """Raises ModelLoadError, EngineFailed, EngineUnavailable."""
        self._answer = asyncio.get_running_loop().create_future()
        if not self._send(frame):
            raise EngineUnavailable("the engine is not there now; try again once it is ready", retry_after_s=1.0)
        answer = await self._answer
        if answer.error is not None:
            raise ModelLoadError(answer.error)
        return answer.drafters

    @contextlib.contextmanager
    def _alone(self, doing: str) -> Iterator[None]:
        if self.doing:
            raise IllegalMove(f"the engine is {self.doing}; one change is made at a time; try again when it has ended")
        self.doing = doing
        try:
            yield
        finally:
            self.doing = ""


def _load(name: str, config: DrafterConfig) -> LoadDrafter:
    return LoadDrafter(name, config.type, {"path": config.path, "max_k": config.max_k, **config.options})
