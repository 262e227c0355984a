"""The directory of captured answers, and the thread that fills it."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from specproxy.errors import ConfigError
from specproxy.server.capture import MAX_WAITING, Capture, Transcript
from specproxy.server.capture_files import FILES, CaptureFiles, claim_folder
from specproxy.server.metrics import Metrics

NOON = 1_800_014_400.0
DAY_S = 86_400.0


class Clock:
    """Time that a test sets. Unix seconds."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        """What time.time would say."""
        return self.now


def test_a_full_directory_loses_its_oldest_file(tmp_path: Path) -> None:
    """Never more than the limit, whole lines only, the newest ones; files of others stay."""
    other = tmp_path / "capture-notes.jsonl"
    other.write_text("mine")
    files = CaptureFiles(tmp_path, 8000, Clock())
    for number in range(300):
        assert files.write(f"{number:098d}\n".encode())
        assert sum(path.stat().st_size for path in files.names()) <= 8000
    lines = [int(line) for path in files.names() for line in path.read_text().splitlines()]
    assert len(files.names()) == FILES
    assert lines == list(range(300 - len(lines), 300))
    assert len(lines) > 60
    assert other.read_text() == "mine"


def test_a_new_file_begins_with_each_process_and_each_day(tmp_path: Path) -> None:
    """So that days can be deleted; nothing that is there is overwritten."""
    clock = Clock()
    for _ in range(2):
        files = CaptureFiles(tmp_path, 2**20, clock)
        files.write(b"one\n")
        files.write(b"two\n")
        files.close()
    clock.now += DAY_S
    files.write(b"three\n")
    assert [path.read_text() for path in files.names()] == ["one\ntwo\n", "one\ntwo\n", "three\n"]
    assert files.names()[-1].name == "capture-20270116-120000-0000.jsonl"


def test_files_stay_in_order_when_the_clock_is_set_back(tmp_path: Path) -> None:
    """The oldest is the one that was written first."""
    clock = Clock()
    for line in (b"one\n", b"two\n"):
        files = CaptureFiles(tmp_path, 2**20, clock)
        files.write(line)
        files.close()
        clock.now -= DAY_S
    assert [path.read_text() for path in files.names()] == ["one\n", "two\n"]


def test_a_line_longer_than_a_file_is_not_written(tmp_path: Path) -> None:
    """It would take the place of everything else."""
    files = CaptureFiles(tmp_path, 8000)
    assert not files.write(b"x" * 1001)
    assert files.write(b"x" * 1000)


def test_a_file_that_was_deleted_is_not_written_to_any_more(tmp_path: Path) -> None:
    """Records would go nowhere until the next day."""
    files = CaptureFiles(tmp_path, 2**20)
    files.write(b"one\n")
    files.names()[0].unlink()
    files.write(b"two\n")
    assert [path.read_text() for path in files.names()] == ["two\n"]


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up in the middle leaves a file that can still be read; what follows goes to another."""
    files = CaptureFiles(tmp_path, 2**20, Clock())
    files.write(b"one\n")
    full = iter([2])

    def write(file: int, data: memoryview) -> int:
        if size := next(full, 0):
            return real(file, data[:size])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        from os import write as real

        patch.setattr("specproxy.server.capture_files.os.write", write)
        with pytest.raises(OSError, match="No space"):
            files.write(b"two\n")
    files.write(b"three\n")
    assert [path.read_text() for path in files.names()] == ["one\n", "three\n"]


def test_the_directory_is_made_and_private(tmp_path: Path) -> None:
    """With the folders around it; once claimed it can be claimed again, and nothing is left in it."""
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        claim_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == []


def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    """Its mode is its owner's business, so that it is not changed."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match=r"mode 0755.*chmod 700"):
        claim_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


class Spoken(Transcript):
    """A transcript with records of its own: numbers."""

    def __init__(self, *records: int) -> None:
        self._records: Any = records

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> Iterator[Any]:
        """Each as it is."""
        yield from self._records


class Disk(CaptureFiles):
    """A directory that waits for ``free``, and refuses what it is told to."""

    def __init__(self, *refused: bytes) -> None:
        self.free = threading.Event()
        self.written: list[bytes] = []
        self._refused = refused

    def write(self, line: bytes) -> bool:
        """Raise for a refused line."""
        self.free.wait(10)
        if line in self._refused:
            raise OSError(28, "No space left on device")
        self.written.append(line)
        return True

    def close(self) -> None:
        """Nothing is open."""


def dropped(metrics: Metrics, reason: str) -> float | None:
    """Records that were not written."""
    return metrics.registry.get_sample_value("specproxy_capture_dropped_records_total", {"reason": reason})


def test_a_slow_disk_drops_records_and_never_waits() -> None:
    """As many wait as may; the rest is counted. What waited is written before the end."""
    metrics, disk = Metrics(), Disk()
    capture = Capture(disk, metrics)
    for number in range(MAX_WAITING + 3):
        capture.offer(Spoken(number, number))
    assert dropped(metrics, "queue_full") == 6
    disk.free.set()
    capture.start()
    capture.close()
    assert len(disk.written) == 2 * MAX_WAITING
    assert metrics.registry.get_sample_value("specproxy_captured_records_total") == 2 * MAX_WAITING


def test_errors_of_the_disk_are_said_once_and_counted() -> None:
    """And the next record is tried again."""
    metrics, disk = Metrics(), Disk(b"2\n", b"5\n")
    disk.free.set()
    capture = Capture(disk, metrics)
    with capture_logs() as logs:
        capture.start()
        for records in ((1,), (2, 3, 4), (5,), (6,)):
            capture.offer(Spoken(*records))
        capture.close()
    assert disk.written == [b"1\n", b"6\n"]
    assert dropped(metrics, "error") == 4
    assert [log["reason"] for log in logs] == ["OSError: [Errno 28] No space left on device"]
