"""Kill switches in the store: never without the line in the log that tells of them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from msgspec.structs import replace

from specproxy.errors import IllegalMove, StaleWrite, StoreDamaged
from specproxy.gate.kills import Kill
from specproxy.gate.sqlite_store import SqliteStore
from specproxy.gate.states import GateState, Move
from specproxy.gate.store import GateStore, Transition
from tests.gate.builders import NOW
from tests.gate.writer import hand_in


def new(store: SqliteStore) -> GateState:
    """The first revision in the store."""
    hand_in(store, 0)
    return store.states()[0]


def move(state: GateState, phase: str | None = None) -> Transition:
    """A transition to another phase, or the line that a switch needs."""
    after = replace(state, phase=phase or state.phase)
    return Transition(Move(state, after, "as the test says"), "ann", NOW)


def off(route: str | None = "default") -> Kill:
    """A switch that is off."""
    return Kill(route, None, "odd", "ann", NOW)


def test_a_kill_switch_is_written_with_the_line_that_tells_of_it(store: SqliteStore, path: Path) -> None:
    """Both or neither, there after a restart; later moves leave it as it is, and lifting is written alike."""
    state = new(store)
    with pytest.raises(StaleWrite):
        store.commit([move(replace(state, version=7), "validated")], [off()])
    assert (store.kills(), len(store.log())) == ([], 1)
    (state,) = store.commit([move(state)], [off(), off(None)])
    store.commit([move(state, "validated")])
    store.close()
    again = SqliteStore(path)
    assert (again.kills(), again.verify()) == ([off(), off(None)], 3)
    state = again.states()[0]
    again.commit([move(state)], [])
    assert (again.kills(), again.verify()) == ([], 4)
    again.close()


def test_a_kill_switch_without_a_line_in_the_log_is_refused(store: GateStore) -> None:
    """Nobody could find out who threw it."""
    with pytest.raises(IllegalMove, match="log line"):
        store.commit([], [off()])
    assert store.kills() == []


@pytest.mark.parametrize(
    "tampering", ["DELETE FROM kills", "UPDATE kills SET body = CAST(replace(body, 'default', 'other') AS BLOB)"]
)
def test_verify_finds_a_switch_that_was_changed_past_the_log(store: SqliteStore, path: Path, tampering: str) -> None:
    """Speculation does not come back on without a line that says who did that."""
    state = new(store)
    store.commit([move(state)], [off()])
    with sqlite3.connect(path) as raw:
        assert raw.execute(tampering).rowcount == 1
    raw.close()
    with pytest.raises(StoreDamaged, match="kill switches"):
        store.verify()


def test_a_file_that_was_made_without_switches_gets_them(store: SqliteStore, path: Path) -> None:
    """Earlier programs made the table later, and their log does not tell of what is in it."""
    new(store)
    store.close()
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TABLE kills")
    raw.close()
    again = SqliteStore(path)
    assert (again.kills(), again.verify()) == ([], 1)
    again.close()
