"""Nobody outlives the others: a lost rank ends the engine, and with the engine go its ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from specproxy.config.schema import EngineConfig, ModelConfig
from specproxy.wire import frames
from tests.conftest import server_environment

START_S = 60.0

Start = Callable[[], tuple["subprocess.Popen[bytes]", socket.socket]]


@pytest.fixture
def start(write_model: Callable[..., str], tmp_path: Path) -> Iterator[Start]:
    """Starts an engine process on two ranks as the server would; the process, and the server's end of its socket."""
    with contextlib.ExitStack() as stack:

        def run() -> tuple[subprocess.Popen[bytes], socket.socket]:
            model = ModelConfig(path=write_model("llama"), tensor_parallel=2, threads=1, exactness="numeric")
            config = EngineConfig(socket=str(tmp_path / "engine.sock"), model=model, drafters={})
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(config.socket)
            listener.listen()
            command = [sys.executable, "-m", "specproxy.engine", "--config", msgspec.json.encode(config).decode()]
            output = stack.enter_context((tmp_path / "output").open("wb"))
            process = subprocess.Popen(command, stdout=output, stderr=output, env=server_environment())
            stack.callback(process.wait)
            stack.callback(process.kill)
            listener.settimeout(START_S)
            server = stack.enter_context(listener.accept()[0])
            server.settimeout(START_S)
            return process, server

        yield run


def test_a_rank_that_is_killed_ends_the_engine(start: Start, tmp_path: Path) -> None:
    """An idle engine whose rank 1 is killed says which process was lost, and how, and ends with exit code 1."""
    process, server = start()
    reader: frames.FrameReader[frames.ToServer] = frames.FrameReader(frames.ToServer)
    first = next(frame for data in iter(lambda: server.recv(2**16), b"") for frame in reader.feed(data))
    assert isinstance(first, frames.Hello)
    rank = ranks_of(process.pid)[0]
    os.kill(rank, signal.SIGKILL)
    assert process.wait(10) == 1
    assert f"rank 1 of 2 (process {rank}) ended with signal 9" in (tmp_path / "output").read_text()


def test_no_rank_outlives_the_engine(start: Start, eventually: Callable[..., None]) -> None:
    """Killed while it loads, with no chance to tell anybody, rank 0 takes the others along."""
    process, _ = start()
    eventually(lambda: ranks_of(process.pid), START_S, "the start of rank 1")
    rank = ranks_of(process.pid)[0]
    process.kill()
    process.wait()
    eventually(lambda: not Path(f"/proc/{rank}").exists(), START_S, "the end of rank 1")


def ranks_of(pid: int) -> list[int]:
    """Process ids of the ranks that a process started."""
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in tasks.read_text().split() if _is_rank(int(word))]


def _is_rank(pid: int) -> bool:
    return b"specproxy.engine.ranks" in Path(f"/proc/{pid}/cmdline").read_bytes()
