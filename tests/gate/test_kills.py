"""A writer that is killed at any point leaves a store that is whole."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specproxy.gate.sqlite_store import SqliteStore
from tests.gate.writer import NEXT, OFF, ON, ROUTE

ROOT = Path(__file__).parents[2]
LONGEST_LIFE_S = 0.06
KILLS_PER_FILE = 10


def write_and_kill(path: Path, life_s: float) -> int:
    """Let a writer live so long after it begins to open ``path``, then kill -9; the last number of entries that it
    reported, 0 where none."""
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.gate.writer", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    if writer.stdout is None or writer.stderr is None:
        raise AssertionError("no pipes")
    first = writer.stdout.readline()
    time.sleep(life_s)
    writer.kill()
    written, errors = writer.communicate()
    assert (first, errors) == (b"open\n", b""), errors.decode()
    # The last line may be cut off by the kill: only whole lines are reports.
    reports = written.split(b"\n")[:-1]
    return int(reports[-1]) if reports else 0


def check(path: Path, least: int) -> int:
    """That nothing is lost, half applied or out of the chain; the number of entries."""
    store = SqliteStore(path)
    entries = store.verify()
    assert entries >= least
    states = store.states(ROUTE)
    log = store.log(limit=100_000)
    assert sum(state.version for state in states) == entries == len(log)
    told = [entry for entry in log if entry.reason in (OFF, ON)][-1:]
    assert [kill.reason for kill in store.kills()] == [entry.revision for entry in told if entry.reason == OFF]
    for state in states:
        assert store.evidence(ROUTE, state.revision).live.num_candidate == state.version
        assert store.revision(ROUTE, state.revision).route == ROUTE
    reached = [state for state in states if state.phase not in NEXT]
    assert [state.phase for state in reached] == ["superseded"] * (len(reached) - 1) + ["active"] * bool(reached)
    assert [state.replaced for state in reached] == [None, *(state.revision for state in reached[:-1])][: len(reached)]
    assert [content.revision for content in store.active()] == [state.revision for state in reached[-1:]]
    store.close()
    return entries


def kill_in_a_loop(folder: Path, kills: int) -> int:
    """Kill writer after writer, with a fresh file now and then; the number of entries that were written."""
    rng, total = random.Random(9), 0
    for number in range(kills):
        path = folder / f"gate-{number // KILLS_PER_FILE}.db"
        before = check(path, 0) if number % KILLS_PER_FILE else 0
        reported = write_and_kill(path, rng.random() * LONGEST_LIFE_S)
        after = check(path, max(before, reported))
        # At most one commit, of two moves, can be done and not yet reported.
        assert after <= max(before, reported) + 2
        total += after - before
    return total


def test_sixty_kills_lose_nothing(tmp_path: Path) -> None:
    """After each kill -9, also while the file is being made: every reported transition is there, none is half applied,
    the hash chain verifies, and the next writer goes on."""
    assert kill_in_a_loop(tmp_path, 60) > 60


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_thousand_kills_lose_nothing(tmp_path: Path) -> None:
    """The same, at a thousand points."""
    assert kill_in_a_loop(tmp_path, 1000) > 1000
