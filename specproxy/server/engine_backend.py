"""The engine as a backend: owns the Unix socket, and carries every sequence over the death of an engine process.

Prompt and received tokens of all that is in flight are kept here. When the link is lost nothing is told to the
readers; when the next process says Hello, everything is submitted again with its received tokens as ``generated``, and
the readers see a pause and the same text. Drafters that were loaded meanwhile are loaded again before it counts as
ready.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Literal, Protocol

import structlog
from msgspec.structs import replace

from specproxy.backend import Deliver
from specproxy.bundle import AuditResult
from specproxy.config.schema import DrafterConfig
from specproxy.errors import EngineFailed, EngineUnavailable, ModelLoadError, RequestError
from specproxy.server.drafter_swaps import DrafterSwaps
from specproxy.server.flight import Flight, is_last
from specproxy.server.link import EngineLink
from specproxy.vocabulary import Decision, Delta, DrafterInfo, Submission
from specproxy.wire.frames import (
    Abort,
    Audit,
    Audited,
    Background,
    DrafterChanged,
    Failed,
    Hello,
    Stats,
    Submit,
    ToEngine,
    Tokens,
    ToServer,
    UpdateDecision,
)

EngineState = Literal["loading", "ready", "restarting", "failed", "closed"]

FINISH_GRACE_S = 5.0
"""How long an answer that a stop string ended waits for its counts. One step is enough; a prefill in between is not."""


class EngineObserver(Protocol):
    """Who wants to know how the engine is."""

    def engine_ready(self, hello: Hello) -> None:
        """A process, the first or a later one, is ready to work."""
        ...

    def engine_lost(self) -> None:
        """The ready process is gone."""
        ...

    def engine_stats(self, stats: Stats) -> None:
        """What it reports about once a second."""
        ...


class EngineBackend:
    """``Backend`` over the engine process, or over several of them one after another."""

    name = "engine"

    def __init__(self) -> None:
        self.observers: list[EngineObserver] = []
        self._flights: dict[str, Flight] = {}
        self._link: EngineLink | None = None
        self._server: asyncio.Server | None = None
        self._first_hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._lost = asyncio.Event()
        self.state: EngineState = "loading"
        self.hello: Hello | None = None
        self.problem = ""
        self.delivered = 0
        self.user_starts = 0
        self.on_heard: Callable[[], None] = lambda: None
        self.on_audited: Callable[[AuditResult], None] = lambda _: None
        self.on_drafters: Callable[[Hello], None] = lambda _: None
        self.swaps = DrafterSwaps(self._send)
        self._restoring: asyncio.Task[None] | None = None

    async def listen(self, listener: socket.socket) -> None:
        """Accept the engine on a bound Unix socket, which becomes ours."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: EngineLink(self), sock=listener)

    @property
    def ready(self) -> bool:
        """Whether an engine process is connected and has said Hello."""
        return self.state == "ready"

    @property
    def in_flight(self) -> int:
        """Sequences submitted and not ended."""
        return len(self._flights)

    @property
    def users(self) -> int:
        """Sequences in flight that a user waits for."""
        return sum(flight.submission.work == "user" for flight in self._flights.values())

    @property
    def decisions(self) -> list[Decision]:
        """Of every sequence in flight."""
        return [flight.submission.decision for flight in self._flights.values()]

    def audit(self, frame: Audit) -> bool:
        """Have an answer computed again; ``on_audited`` gets the result, unless this engine process dies first.
        False where there is none now."""
        if not self.ready:
            return False
        self._send(frame)
        return True

    async def load_drafter(self, name: str, config: DrafterConfig) -> None:
        """Load a drafter beside the others, or in place of the one of that name once it works; ``hello`` says what is
        loaded then. It is loaded again into every later engine process. Raises as ``DrafterSwaps.load``."""
        self._have(await self.swaps.load(name, config))

    async def unload_drafter(self, name: str) -> None:
        """Drop a drafter; what runs with it goes on without. Raises as ``DrafterSwaps.unload``."""
        self._have(await self.swaps.unload(name))

    def redecide(self, change: Callable[[Decision], Decision]) -> None:
        """Give every running sequence what ``change`` makes of its decision, from its next step on."""
        for flight in self._flights.values():
            before = flight.submission.decision
            after = change(before)
            if after != before:
                flight.submission = replace(flight.submission, decision=after)
                self._send(UpdateDecision(after, id=flight.submission.id))

    async def wait_ready(self) -> Hello:
        """The first Hello. Raises ModelLoadError when the engine cannot start."""
        return await asyncio.shield(self._first_hello)

    def expect(self) -> None:
        """Another engine process is about to start."""
        self._lost.clear()

    async def wait_lost(self) -> None:
        """Returns when the link of the current engine process is lost."""
        await self._lost.wait()

    def start(self, submission: Submission, deliver: Deliver) -> None:
        """Generate one sequence; see ``Backend``. It survives engine deaths."""
        if self.hello is None or self.state in ("failed", "closed"):
            raise EngineUnavailable(self.problem or "the engine is still loading", retry_after_s=1.0)
        self.user_starts += submission.work == "user"
        flight = self._flights[submission.id] = Flight(submission, deliver)
        self._submit(flight)

    def cancel(self, sequence_id: str) -> None:
        """Abort a sequence; see ``Backend``."""
        if self._flights.pop(sequence_id, None) is not None:
            self._send(Abort(sequence_id))

    def finish(self, sequence_id: str) -> None:
        """End a sequence whose answer is complete; see ``Backend``."""
        flight = self._flights.get(sequence_id)
        if flight is None or flight.finishing:
            return
        flight.finishing = True
        if self._link is None:
            self._push(flight, Delta(sequence_id, finish_reason="abort"))
            return
        self._send(Abort(sequence_id, report=True))
        asyncio.get_running_loop().call_later(FINISH_GRACE_S, self._finish_without_counts, flight)

    async def close(self) -> None:
        """Stop listening and drop the engine's connection, which ends the engine."""
        self.state = "closed"
        if self._server is not None:
            self._server.close()
        if self._link is not None:
            self._link.cut()
        self._fail_all(EngineUnavailable("the server is stopping"))

    def give_up(self, message: str) -> None:
        """No engine process will come back: fail what is in flight and refuse what follows."""
        self.state = "failed"
        self.problem = message
        if not self._first_hello.done():
            self._first_hello.set_exception(ModelLoadError(message))
        self._fail_all(EngineUnavailable(message))

    def on_frame(self, link: EngineLink, frame: ToServer) -> None:
        """A frame of the engine; the hot one comes first."""
        self.on_heard()
        match frame:
            case Tokens():
                for delta in frame.deltas:
                    flight = self._flights.get(delta.id)
                    if flight is not None:
                        self.delivered += len(delta.tokens)
                        if flight.finishing:
                            self._drop_overrun(delta)
                        self._push(flight, delta)
            case Stats():
                for observer in self.observers:
                    observer.engine_stats(frame)
            case Audited():
                self.on_audited(frame.result)
            case Hello():
                self._welcome(link, frame)
            case Failed():
                self.problem = frame.message
            case DrafterChanged():
                self.swaps.answered(frame)

    def on_lost(self, link: EngineLink) -> None:
        """The connection is gone: keep what is in flight for the next process, but for what keeps killing them."""
        self._lost.set()
        if link is not self._link:
            return
        self._link = None
        self.swaps.lost()
        if self.state == "ready":
            self.state = "restarting"
        for observer in self.observers:
            observer.engine_lost()
        for flight in list(self._flights.values()):
            if flight.finishing:
                self._finish_without_counts(flight)
            elif not flight.died():
                self._fail(flight, EngineFailed("the engine died twice while it worked on this request"))

    def _welcome(self, link: EngineLink, hello: Hello) -> None:
        self._link = link
        self.hello = hello
        self.problem = ""
        for flight in self._flights.values():
            self._submit(flight)
        if self.swaps.differs(hello.drafters):
            self._restoring = asyncio.get_running_loop().create_task(self._restore(link, hello))
        else:
            self._ready(hello)

    async def _restore(self, link: EngineLink, hello: Hello) -> None:
        """Have the drafters back that an earlier process had. Streams go on meanwhile, without them."""
        try:
            drafters = await self.swaps.restore(hello.drafters)
        except RequestError:
            return  # This process is gone as well; the next one says Hello.
        if self._link is link:
            self._have(drafters)
            self._ready(replace(hello, drafters=drafters))

    def _ready(self, hello: Hello) -> None:
        self.state = "ready"
        for observer in self.observers:
            observer.engine_ready(hello)
        if not self._first_hello.done():
            self._first_hello.set_result(hello)

    def _have(self, drafters: list[DrafterInfo]) -> None:
        """The engine has these drafters now."""
        if self.hello is not None:
            self.hello = replace(self.hello, drafters=drafters)
            self.on_drafters(self.hello)
        structlog.get_logger().info("drafters changed", drafters=[info.name for info in drafters])

    def _submit(self, flight: Flight) -> None:
        submission = flight.resumed()
        self._send(Background(submission) if submission.work == "background" else Submit(submission))

    def _send(self, frame: ToEngine) -> bool:
        """Put a frame on its way; False where there is no engine now."""
        if self._link is None:
            return False
        self._link.send(frame)
        return True

    def _finish_without_counts(self, flight: Flight) -> None:
        if self._flights.get(flight.submission.id) is flight:
            self._send(Abort(flight.submission.id))
            self._push(flight, Delta(flight.submission.id, finish_reason="abort"))

    def _drop_overrun(self, delta: Delta) -> None:
        """Tokens behind a stop string were on their way when the engine was told; nobody asked for them."""
        delta.tokens = []
        delta.logprobs = None

    def _fail_all(self, error: EngineUnavailable) -> None:
        for flight in list(self._flights.values()):
            self._fail(flight, error)

    def _push(self, flight: Flight, delta: Delta) -> None:
        if is_last(delta):
            del self._flights[flight.submission.id]
        flight.push(delta)

    def _fail(self, flight: Flight, error: RequestError) -> None:
        self._push(flight, Delta(flight.submission.id, finish_reason="error", error=error.info()))
