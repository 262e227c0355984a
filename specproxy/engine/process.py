"""The engine process: a socket to the server on one side, the loop on the other.

One thread: frames are read between steps, and none interrupts one. When the server goes away, so does the engine.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import sys
import time
import traceback

from specproxy.config.schema import DrafterConfig, EngineConfig
from specproxy.engine.assemble import Assembled, assemble
from specproxy.engine.auditing import make_audits
from specproxy.engine.faults import inject_wanted
from specproxy.errors import RankLost, SpecproxyError, StartError
from specproxy.wire import frames
from specproxy.wire.frames import ToEngine

STATS_EVERY_S = 0.5
IDLE_WAIT_S = 0.25
SEND_BUFFER = 4 * 2**20


class Link:
    """Frames in and out of the Unix socket, on the engine's one thread: what arrives waits in the kernel."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._socket.connect(path)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._reader: frames.FrameReader[ToEngine] = frames.FrameReader(ToEngine)

    def send(self, frame: frames.ToServer) -> None:
        """Send one frame; that the server is gone is noticed by ``receive``."""
        with contextlib.suppress(OSError):
            self._socket.sendall(frames.encode(frame))

    def receive(self, wait_s: float) -> list[ToEngine] | None:
        """Every frame that is there, after waiting up to ``wait_s`` seconds for one; ``None``: the server is gone."""
        found: list[ToEngine] = []
        while self._poll.poll(0 if found else wait_s * 1000):
            try:
                data = self._socket.recv(2**20)
                found += self._reader.feed(data)
            except (OSError, SpecproxyError) as error:
                print(f"engine: connection to the server lost: {error}", file=sys.stderr, flush=True)
                return None
            if not data:
                return None
        return found


class Process:
    """Feeds the loop from the link and sends what it yields."""

    def __init__(self, link: Link, assembled: Assembled) -> None:
        self._link = link
        self._assembled = assembled
        self._engine = assembled.engine
        self._audits = make_audits(assembled)
        self._next_stats = 0.0

    def run(self) -> None:
        """Work until the server is gone."""
        while (arrived := self._link.receive(self._wait_s())) is not None:
            for frame in arrived:
                self._handle(frame)
            deltas = self._engine.step()
            if deltas:
                self._link.send(frames.Tokens(deltas))
            for result in self._audits.step(self._engine.scheduler.serves_users):
                self._link.send(frames.Audited(result))
            now = time.monotonic()
            if now >= self._next_stats:
                self._next_stats = now + STATS_EVERY_S
                self._link.send(self._stats())

    def _wait_s(self) -> float:
        """How long to wait for a frame: not at all where there is something to do."""
        if not self._engine.idle:
            return 0.0
        return min(IDLE_WAIT_S, self._audits.due_in(self._engine.scheduler.serves_users))

    def _handle(self, frame: ToEngine) -> None:
        match frame:
            case frames.Submit(submission) | frames.Background(submission):
                self._engine.submit(submission)
            case frames.Audit():
                self._audits.add(frame)
            case frames.Abort():
                self._engine.abort(frame.id, frame.report)
            case frames.UpdateDecision():
                self._engine.update(frame.decision, frame.id, frame.route)
            case frames.LoadDrafter():
                self._load_drafter(frame)
            case frames.UnloadDrafter(name):
                self._assembled.unload_drafter(name)
                self._drafters_changed()

    def _load_drafter(self, frame: frames.LoadDrafter) -> None:
        error = None
        options = dict(frame.options)
        path = options.pop("path", "") or ""
        max_k = options.pop("max_k", None)
        config = DrafterConfig(
            type=frame.drafter_type, path=str(path), max_k=int(max_k) if max_k else None, options=options
        )
        _tell(f"loading drafter {frame.name}")
        try:
            self._assembled.load_drafter(frame.name, config)
        except StartError as refused:
            error = str(refused)
        except RankLost:
            raise
        except Exception as failed:  # noqa: BLE001 - whatever a file does to its loader, the others' streams go on
            traceback.print_exc()
            error = f"drafters.{frame.name}: cannot be loaded: {type(failed).__name__}: {failed}"
        self._drafters_changed(error)

    def _drafters_changed(self, error: str | None = None) -> None:
        # What was there at the start was taken out of collections; a drafter that has gone must not keep its memory.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._link.send(frames.DrafterChanged(self._assembled.drafter_infos(), error))

    def _stats(self) -> frames.Stats:
        scheduler, times = self._engine.scheduler, self._engine.times
        return frames.Stats(
            running=sum(s.user for s in scheduler.running),
            waiting=scheduler.waiting,
            background=scheduler.background,
            pages_used=scheduler.pool.used,
            pages_cached=scheduler.pool.cached,
            pages_total=scheduler.pool.total,
            preemptions=scheduler.preemptions,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            steps=times.steps,
            step_s=times.take(),
            audits=self._audits.waiting,
        )


def main(config: EngineConfig, started: float) -> int:
    """Run the engine; ``started`` is when the process began (time.monotonic). Returns the exit code."""
    link = Link(config.socket)
    try:
        assembled = assemble(config, _tell, _end)
        inject_wanted(assembled, os.environ, _tell)
    except (StartError, RankLost) as error:
        link.send(frames.Failed(str(error)))
        return 1
    link.send(
        frames.Hello(
            pid=os.getpid(),
            model=assembled.model,
            numerics=assembled.numerics,
            drafters=assembled.drafter_infos(),
            num_pages=assembled.engine.scheduler.pool.total,
            page_size=assembled.host.page_size,
            max_sequences=config.model.max_sequences,
            load_s=time.monotonic() - started,
        )
    )
    gc.collect()
    gc.freeze()
    try:
        Process(link, assembled).run()
    except RankLost as error:
        _end(str(error))
    assembled.close()
    return 0


def _tell(what: str) -> None:
    print(f"engine: {what}", file=sys.stderr, flush=True)


def _end(why: str) -> None:
    """End at once: the main thread may wait for a GPU that waits for a process that is gone."""
    _tell(why)
    os._exit(1)
