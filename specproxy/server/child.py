"""The engine as an operating-system process: listened to, and ended. ``launch`` starts it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable

TAIL_LINES = 20
STOP_GRACE_S = 5.0
_MAX_LINE = 64 * 1024


def kill_group(process: subprocess.Popen[bytes], sig: signal.Signals = signal.SIGKILL) -> None:
    """Signal the process and everything it started, which may outlive it; nothing happens when all have ended."""
    try:
        os.killpg(process.pid, sig)
    except (ProcessLookupError, PermissionError):
        pass  # The group is empty; macOS says so with the second.


async def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, then insist."""
    kill_group(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_GRACE_S):
            await asyncio.to_thread(process.wait)
    except TimeoutError:
        kill_group(process)
        await asyncio.to_thread(process.wait)


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


class OutputReader:
    """Reads what the process prints, line by line, into ``sink``; ``tail`` keeps the last lines for error messages."""

    def __init__(self, sink: Callable[[str], None]) -> None:
        self._sink = sink
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    async def read(self, process: subprocess.Popen[bytes]) -> None:
        """Until the process closes its output."""
        stream = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), process.stdout)
        rest = b""
        try:
            while data := await stream.read(_MAX_LINE):
                *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                for line in lines:
                    self._take(line)
                if len(rest) > _MAX_LINE:
                    self._take(rest)
                    rest = b""
            self._take(rest)
        finally:
            transport.close()

    def _take(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").rstrip()
        if line:
            self.tail.append(line)
            self._sink(line)
