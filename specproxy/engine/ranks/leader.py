"""Rank 0: starts the other ranks, tells them what to repeat, and notices when one is gone.

Commands go through a pipe to each rank, not through torch.distributed: a step is some hundred bytes of metadata, and
on a GPU a broadcast would wait for the card.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from specproxy.config.schema import ModelConfig
from specproxy.engine.ranks.commands import Clear, Command, Copy, Drop, Make, Refused, Run, decode_answer, encode
from specproxy.engine.ranks.part import load_part
from specproxy.engine.runner import Rules
from specproxy.engine.step import Step
from specproxy.errors import ModelLoadError, RankLost
from specproxy.kernels.paged import KEY_BLOCK, KVBuffers
from specproxy.models.base import StepModel
from specproxy.models.sharding import Group, meeting_point

END_S = 5.0
"""A rank that has not ended so long after its pipe was closed is killed."""

Lost = Callable[[str], None]


class Leader(Group):
    """Rank 0's view of the group. ``lost`` is called with a message, from a thread of its own, when a rank ends that
    was not told to: on a GPU this process may be waiting for it without end."""

    def __init__(self, config: ModelConfig, lost: Lost) -> None:
        super().__init__(0, config.tensor_parallel)
        self._lost = lost
        self._loss = ""
        self._leaving = False
        self._numbers = itertools.count()
        self._dropped: list[int] = []
        self._store = meeting_point(self.size)
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._watchers: list[threading.Thread] = []
        for rank in range(1, self.size):
            self._start(rank, config)

    def _start(self, rank: int, config: ModelConfig) -> None:
        mine, theirs = Pipe()
        numbers = ["--rank", str(rank), "--port", str(self._store.port), "--pipe", str(theirs.fileno())]
        command = [sys.executable, "-m", "specproxy.engine.ranks", "--config", msgspec.json.encode(config).decode()]
        process = subprocess.Popen([*command, *numbers], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        watcher = threading.Thread(target=self._watch, args=(rank, process), daemon=True)
        watcher.start()
        self._pipes.append(mine)
        self._processes.append(process)
        self._watchers.append(watcher)

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if not self._leaving and not self._loss:
            how = f"exit code {code}" if code >= 0 else f"signal {-code}"
            self._loss = f"rank {rank} of {self.size} (process {process.pid}) ended with {how}; its output says why"
            self._lost(self._loss)

    def gather(self, device: str) -> None:
        """Wait until every rank has its part, and meet. Raises ModelLoadError with what the first one said."""
        for rank, pipe in enumerate(self._pipes, 1):
            try:
                answer = decode_answer.decode(pipe.recv_bytes())
            except (EOFError, OSError):
                raise ModelLoadError(f"rank {rank} of {self.size} ended while it loaded; its output says why") from None
            if isinstance(answer, Refused):
                raise ModelLoadError(f"rank {rank} of {self.size}: {answer.message}")
        self.meet(self._store, device)

    def tell(self, command: Command) -> None:
        """Have every rank do the same. Raises RankLost."""
        while self._dropped:
            self._send(Drop(self._dropped.pop()))
        self._send(command)

    def _send(self, command: Command) -> None:
        data = encode(command)
        try:
            for pipe in self._pipes:
                pipe.send_bytes(data)
        except OSError:
            raise RankLost(self._loss or "a rank has ended; its output says why") from None

    def lead(self, kv: KVBuffers) -> LedBuffers:
        """``kv``, with every rank holding its part of them."""
        led = LedBuffers(kv, self, next(self._numbers))
        # Buffers may go at any time, in the middle of a message too: the next one says so.
        weakref.finalize(led, self._dropped.append, led.number).atexit = False
        return led

    def leave(self) -> None:
        """End the other ranks."""
        self._leaving = True
        for pipe in self._pipes:
            pipe.close()
        super().leave()
        for watcher, process in zip(self._watchers, self._processes, strict=True):
            watcher.join(END_S)
            if watcher.is_alive():
                process.kill()


class LedBuffers(KVBuffers):
    """KV of rank 0's part. What is done to it is done to the other ranks' parts."""

    def __init__(self, kv: KVBuffers, leader: Leader, number: int) -> None:
        super().__init__(kv.shapes, kv.layers, kv.page_size)
        self.number = number
        self._leader = leader
        leader.tell(Make(number, (kv.num_slots - KEY_BLOCK) // kv.page_size, kv.page_size))

    def run(self, step: Step, rules: Rules, hidden: Sequence[int]) -> None:
        """Have ``step`` run on the other ranks; this rank's part is the caller's."""
        self._leader.tell(Run(self.number, step, rules, list(hidden)))

    def zero_page(self, page: int) -> None:
        """See KVBuffers."""
        self._leader.tell(Clear(self.number, page))
        super().zero_page(page)

    def copy_slots(self, source: Sequence[int], target: Sequence[int]) -> None:
        """See KVBuffers."""
        self._leader.tell(Copy(self.number, list(source), list(target)))
        super().copy_slots(source, target)


def load_target(config: ModelConfig, lost: Lost) -> tuple[StepModel, Path]:
    """The target and its folder: whole, or rank 0's part of it with the other ranks running. ``lost``: see Leader.
    Raises ModelLoadError."""
    if config.tensor_parallel == 1:
        return load_part(config, None)
    leader = Leader(config, lost)
    try:
        model, folder = load_part(config, leader)
        leader.gather(model.spec.device)
    except BaseException:
        leader.leave()
        raise
    return model, folder
