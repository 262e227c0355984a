"""A rank beside rank 0: loads its part of the target and repeats what it is told."""

from __future__ import annotations

import select
import time
from multiprocessing.connection import Connection

import torch

from specproxy.config.schema import ModelConfig
from specproxy.engine.ranks.commands import (
    Clear,
    Command,
    Copy,
    Drop,
    Loaded,
    Make,
    Refused,
    Run,
    decode_command,
    encode,
)
from specproxy.engine.ranks.part import load_part
from specproxy.engine.runner import NUMERIC, Runner
from specproxy.engine.threads import Threads
from specproxy.errors import ModelLoadError
from specproxy.kernels.paged import KVBuffers
from specproxy.models.base import StepModel
from specproxy.models.sharding import Group, meeting_point

SPIN_S = 0.005
"""Beside a GPU a rank looks for the next command so long before it sleeps: waking up takes some of a step's time, and
there the cores are idle."""


class Follower:
    """Repeats commands on its part of the target."""

    def __init__(self, model: StepModel, threads: Threads) -> None:
        self._model = model
        self._threads = threads
        self._runners: dict[int, Runner] = {}

    def obey(self, command: Command) -> None:
        """Do what rank 0 does now."""
        match command:
            case Make():
                spec = self._model.spec
                kv = KVBuffers.allocate(spec.layers, command.pages, command.page_size, spec.dtype, spec.device)
                self._runners[command.buffers] = Runner(self._model, kv, NUMERIC, self._threads)
            case Drop():
                del self._runners[command.buffers]
            case Clear():
                self._runners[command.buffers].kv.zero_page(command.page)
            case Copy():
                self._runners[command.buffers].kv.copy_slots(command.source, command.target)
            case Run():
                runner = self._runners[command.buffers]
                if runner.rules != command.rules:
                    runner = self._runners[command.buffers] = runner.under(command.rules)
                runner.run(command.step, command.hidden)


def follow(config: ModelConfig, rank: int, port: int, pipe: Connection) -> int:
    """Be rank ``rank`` of rank 0's engine, at the other end of ``pipe``, until that closes; the exit code."""
    torch.set_grad_enabled(False)
    group = Group(rank, config.tensor_parallel)
    try:
        model, _ = load_part(config, group)
    except ModelLoadError as error:
        pipe.send_bytes(encode(Refused(str(error))))
        return 1
    pipe.send_bytes(encode(Loaded()))
    group.meet(meeting_point(group.size, port), model.spec.device)
    follower = Follower(model, Threads.choose(config.threads))
    spin_s = SPIN_S if model.spec.device.startswith("cuda") else 0.0
    while (data := receive(pipe, spin_s)) is not None:
        follower.obey(decode_command.decode(data))
    group.leave()
    return 0


def receive(pipe: Connection, spin_s: float) -> bytes | None:
    """The next message, after ``spin_s`` seconds of looking at most, then of sleeping; ``None``: none will come."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    until = time.monotonic() + spin_s
    while spin_s and not poll.poll(0) and time.monotonic() < until:
        pass
    try:
        return pipe.recv_bytes()
    except (EOFError, OSError):
        return None
