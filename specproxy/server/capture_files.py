"""The directory of captured answers: JSON lines in files of bounded size, the oldest deleted for the newest.

Only this user may enter the directory (mode 0700) or read a file (0600). One thread of one server writes to it. Files
that are not named like ours are neither counted nor touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from specproxy.errors import ConfigError

LARGEST_FILE = 64 * 2**20
"""Bytes: what training reads at once, and what a full directory loses at once."""

FILES = 8
"""A directory with a small limit still holds this many files, so that it is never emptied for one record."""

_NAME = re.compile(r"capture-(?P<second>\d{8}-\d{6})-(?P<number>\d{4,})\.jsonl\Z")


def claim_folder(folder: Path) -> None:
    """Make the directory if it is not there, and see that it can be written and is private. Raises ConfigError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(folder.stat().st_mode)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"capture: cannot write to {folder}: {error.strerror or error}; expected a directory that this user "
            "may write, or a path where one can be made"
        ) from None
    if mode & 0o077:
        raise ConfigError(
            f"capture: other users may enter {folder} (mode {mode:04o}), and it is to hold what people ask; "
            f"chmod 700 it, or name one that does not exist yet"
        )


class CaptureFiles:
    """Files ``capture-DATE-TIME-NUMBER.jsonl`` (UTC) of a directory. ``max_bytes`` bounds all of them together.

    A new file begins with each process, each day, and where a file is full.
    """

    def __init__(self, folder: Path, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.file_bytes = min(LARGEST_FILE, max_bytes // FILES)
        self.folder = folder
        self._max_bytes = max_bytes
        self._clock = clock
        self._file: int | None = None
        self._size = 0
        self._day = ""

    def write(self, line: bytes) -> bool:
        """Append a line, with its end; False for one that is longer than a file may be.

        Raises OSError; then nothing of the line is left, and the next one begins another file.
        """
        if len(line) > self.file_bytes:
            return False
        now = datetime.fromtimestamp(self._clock(), UTC)
        if self._file is None or not self._fits(self._file, line, f"{now:%Y%m%d}"):
            self.close()
            self._make_room()
            self._file, self._size, self._day = self._create(now), 0, f"{now:%Y%m%d}"
        self._append(self._file, line)
        return True

    def close(self) -> None:
        """Close the current file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def names(self) -> list[Path]:
        """Every file of ours, the oldest first."""
        return sorted(path for path in self.folder.iterdir() if _NAME.match(path.name))

    def _fits(self, file: int, line: bytes, day: str) -> bool:
        """Whether ``line`` belongs into the current file. One that somebody deleted is not written to any more."""
        return self._day == day and self._size + len(line) <= self.file_bytes and os.fstat(file).st_nlink > 0

    def _make_room(self) -> None:
        """Delete the oldest files until a full one more fits under the limit."""
        sizes = {path: path.stat().st_size for path in self.names()}
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total + self.file_bytes <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _create(self, now: datetime) -> int:
        """A file whose name is behind all others, also where the clock was set back: names are the files' order."""
        second, number = f"{now:%Y%m%d-%H%M%S}", 0
        newest = _NAME.match(max((path.name for path in self.names()), default=""))
        if newest is not None and newest["second"] >= second:
            second, number = newest["second"], int(newest["number"]) + 1
        path = self.folder / f"capture-{second}-{number:04d}.jsonl"
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)

    def _append(self, file: int, line: bytes) -> None:
        """All of ``line`` or none of it: half a line would make the file unreadable."""
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, self._size)
            self.close()
            raise
        self._size += len(line)
