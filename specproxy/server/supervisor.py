"""Keeps one engine process running: starts it again when it dies, gives up when that leads nowhere."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable

import structlog

from specproxy.server.child import OutputReader, describe_exit, end, kill_group
from specproxy.server.engine_backend import EngineBackend
from specproxy.server.watchdog import Watchdog

MAX_BARREN_LIVES = 4
"""Engine processes in a row that died without having produced a token, after which no other is started."""

_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 10.0
_LAST_WORDS_S = 1.0


class RestartPolicy:
    """When to start the next process. A life that produced tokens is a good one, and the next starts at once; the
    delay doubles with every barren one."""

    def __init__(self, max_barren: int = MAX_BARREN_LIVES) -> None:
        self._max_barren = max_barren
        self._barren = 0

    def died(self, *, fruitful: bool) -> float | None:
        """Seconds to wait before the next start; ``None``: give up."""
        self._barren = 0 if fruitful else self._barren + 1
        if self._barren >= self._max_barren:
            return None
        if self._barren == 0:
            return 0.0
        return min(_FIRST_DELAY_S * 2.0 ** (self._barren - 1), _MAX_DELAY_S)


class Supervisor:
    """Runs engine processes one after another for ``backend``.

    ``start`` makes a process (called from the loop's thread, which must be the main one); ``first`` is one that was
    started before the loop was, to save its loading time. ``restarts`` counts processes after the first.
    """

    def __init__(
        self,
        backend: EngineBackend,
        start: Callable[[], subprocess.Popen[bytes]],
        first: subprocess.Popen[bytes],
        sink: Callable[[str], None],
        watchdog: Watchdog,
    ) -> None:
        self._backend = backend
        self._start = start
        self._process = first
        self._sink = sink
        self._policy = RestartPolicy()
        self._watchdog = watchdog
        backend.on_heard = watchdog.heard
        self.restarts = 0

    @property
    def pid(self) -> int:
        """Process id of the current engine, which may be dead."""
        return self._process.pid

    async def run(self) -> None:
        """Until cancelled, or until there is no point in another start. Ends the process on the way out."""
        try:
            while await self._one_life():
                self._backend.expect()
                self._process = self._start()
                self.restarts += 1
        except Exception as error:  # noqa: BLE001 - clients in flight must be told, whatever it was
            structlog.get_logger().exception("supervision failed")
            self._backend.give_up(f"the engine process cannot be supervised any more: {error}")
        finally:
            await asyncio.shield(end(self._process))

    async def _one_life(self) -> bool:
        """Watch the current process until it ends; whether to start another."""
        log = structlog.get_logger()
        before = self._backend.delivered
        reader = OutputReader(self._sink)
        code = await self._watch(reader)
        if self._backend.hello is None:
            self._backend.give_up(first_failure(self._backend.problem, code, reader))
            return False
        delay = self._policy.died(fruitful=self._backend.delivered > before)
        cause = self._backend.problem or describe_exit(code)
        if delay is None:
            log.error("engine given up", reason=cause, restarts=self.restarts, output=list(reader.tail))
            self._backend.give_up(f"the engine keeps dying ({cause}); gave up after {self.restarts} restarts")
            return False
        log.error("engine died", reason=cause, in_flight=self._backend.in_flight, restart_in_s=delay)
        await asyncio.sleep(delay)
        return True

    async def _watch(self, reader: OutputReader) -> int:
        """One process from start to end; its exit code. A process that lost its link or hangs is of no use and is
        killed."""
        process = self._process
        reading = asyncio.create_task(reader.read(process))
        watching = [asyncio.create_task(kill(process)) for kill in (self._kill_when_lost, self._kill_when_hung)]
        try:
            code = await asyncio.to_thread(process.wait)
            kill_group(process)
            await asyncio.wait({reading}, timeout=_LAST_WORDS_S)
            return code
        finally:
            for task in (*watching, reading):
                task.cancel()

    async def _kill_when_lost(self, process: subprocess.Popen[bytes]) -> None:
        await self._backend.wait_lost()
        kill_group(process)

    async def _kill_when_hung(self, process: subprocess.Popen[bytes]) -> None:
        backend = self._backend
        await self._watchdog.wait(lambda: backend.ready and not backend.swaps.doing)
        backend.problem = f"it hung: nothing was heard of it for {self._watchdog.limit_s:g} s"
        structlog.get_logger().error("engine hangs", silent_s=self._watchdog.limit_s, in_flight=backend.in_flight)
        kill_group(process)


def first_failure(problem: str, code: int, reader: OutputReader) -> str:
    """Why the engine never became ready: its own words, or else how it ended and what it printed last."""
    if problem:
        return problem
    lines = "\n".join(f"    {line}" for line in reader.tail)
    return f"the engine ended ({describe_exit(code)}) before it was ready" + (
        f"; it printed:\n{lines}" if lines else ""
    )
