"""The gate's store beside the event loop: one thread writes, one server owns the file."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from specproxy.errors import StoreDamaged
from specproxy.gate.sqlite_store import SqliteStore
from specproxy.gate.store import GateStore

T = TypeVar("T")

MEMORY = Path(":memory:")


def lock_file(path: Path) -> Path:
    """Who holds a lock on this owns the store: ``specproxy.lock.db`` beside ``specproxy.db``. It is not the store
    itself, as closing any handle of a file lets go of SQLite's own locks on it."""
    return path.with_name(f"{path.stem}.lock{path.suffix}")


class Ledger:
    """Calls to the store, one after another, in a thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "gate")
        self._store: GateStore | None = None
        self._lock = -1
        self.kept = False

    async def open(self, path: Path) -> None:
        """Open the file, or make it. Raises StoreDamaged where it is none, or another server has it."""
        await self._run(lambda: self._open(path))
        self.kept = path != MEMORY

    @property
    def opened(self) -> bool:
        """Whether there is a store to call."""
        return self._store is not None

    async def call(self, function: Callable[[GateStore], T]) -> T:
        """``function`` of the store."""
        return await self._run(lambda: function(self._opened()))

    async def close(self) -> None:
        """Write what waits, and let go of the file."""
        await self._run(self._close)
        self._thread.shutdown()

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _opened(self) -> GateStore:
        if self._store is None:
            raise StoreDamaged("the gate's file is not open yet, or was closed")
        return self._store

    def _open(self, path: Path) -> None:
        if path != MEMORY:
            self._lock = _claim(path)
        try:
            self._store = SqliteStore(path)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
        self._store = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _claim(path: Path) -> int:
    """A handle whose lock says that the store is ours; the kernel frees it however this process ends."""
    try:
        handle = os.open(lock_file(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreDamaged(f"{path}: cannot be made: {error.strerror or error}; choose another state.path") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise StoreDamaged(
            f"{path}: another server keeps its state there; give this one a file of its own: --set state.path=FILE"
        ) from None
    return handle
