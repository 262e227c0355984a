"""The gate store: whole transitions, optimistic concurrency, a log that shows every change."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from specproxy.errors import IllegalMove, StaleWrite, StoreDamaged, UnknownRevision
from specproxy.gate.assessment import assess
from specproxy.gate.machine import move
from specproxy.gate.orders import hand_over
from specproxy.gate.sqlite_store import SqliteStore
from specproxy.gate.states import GateState, Move, new_state
from specproxy.gate.store import GENESIS, GateStore, Revision, Transition, digest
from specproxy.policy.schema import Gate, Settings
from tests.gate.builders import NOW, observed, rules

RULES = rules()
SETTINGS = Settings(gate=Gate(mode="auto", min_samples=77))


def content(letter: str, route: str = "default", position: int = 0) -> Revision:
    """A revision that is a letter repeated."""
    return Revision(
        route=route,
        revision=letter * 64,
        position=position,
        match={"temperature": {"ge": 0.9}},
        settings=msgspec.to_builtins(SETTINGS),
        drafters={"ngram": "f00"},
        created=NOW,
    )


def hand_in(store: GateStore, letter: str, route: str = "default", position: int = 0) -> GateState:
    """A new revision in the store."""
    state = new_state(route, letter * 64, NOW)
    given = content(letter, route, position)
    return store.submit(given, Transition(Move(state, state, "edited"), "file watcher", NOW, observed(RULES)))


def to(state: GateState, phase: str, **fields: object) -> Transition:
    """A transition to another phase."""
    return Transition(Move(state, replace(state, phase=phase, **fields), f"to {phase}"), "gate", NOW + 1)


def test_a_new_revision_is_there_whole(store: GateStore) -> None:
    """Content, state, evidence and the first entry of the log, as they were handed in."""
    state = hand_in(store, "a")
    assert (state.phase, state.version) == ("draft", 1)
    assert store.state("default", "a" * 64) == state
    assert store.revision("default", "a" * 64) == content("a")
    assert store.revision("default", "a" * 64).effective() == SETTINGS
    assert store.evidence("default", "a" * 64) == observed(RULES)
    (entry,) = store.log()
    assert (entry.seq, entry.before, entry.after, entry.reason, entry.actor) == (
        1,
        None,
        state,
        "edited",
        "file watcher",
    )
    assert entry.previous == GENESIS


def test_a_transition_writes_state_evidence_and_log_together(store: GateStore) -> None:
    """With the evidence that it rests on, and the rules by which it was judged."""
    state = hand_in(store, "a")
    evidence = observed(RULES, shadow=60)
    moved = move(state, evidence, RULES, NOW)
    (after,) = store.commit([Transition(moved, "gate", NOW, evidence, RULES)])
    assert (after.phase, after.version) == ("validated", 2)
    assert store.state("default", "a" * 64) == after
    assert store.evidence("default", "a" * 64) == evidence
    entry = store.log()[-1]
    assert (entry.before, entry.after, entry.findings, entry.rules) == ("draft", after, assess(evidence, RULES), RULES)
    assert store.verify() == 2


def test_a_stale_write_is_refused_and_changes_nothing(store: GateStore) -> None:
    """Whoever moves second gets a 412 that names both versions, and has to read again."""
    state = hand_in(store, "a")
    store.commit([to(state, "validated")])
    for write in (lambda: store.commit([to(state, "shadow")]), lambda: store.save_evidence(state, observed(RULES))):
        with pytest.raises(StaleWrite, match=r"version 2 .*version 1") as caught:
            write()
        assert caught.value.status == 412
    assert (store.state("default", "a" * 64).phase, store.verify()) == ("validated", 2)


def test_of_many_concurrent_writers_one_wins(store: GateStore, path: Path) -> None:
    """Eight threads, four of them with a file handle of their own, move the same version at once."""
    state = hand_in(store, "a")
    others = [SqliteStore(path) for _ in range(4)]
    outcomes: list[str] = []

    def write(into: GateStore) -> None:
        try:
            into.commit([to(state, "validated")])
            outcomes.append("won")
        except StaleWrite:
            outcomes.append("stale")

    threads = [threading.Thread(target=write, args=(into,)) for into in [store] * 4 + others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["stale"] * 7 + ["won"]
    assert store.verify() == 2
    for other in others:
        other.close()


def test_several_transitions_are_written_together_or_not_at_all(store: GateStore) -> None:
    """If the second of two is stale, the first did not happen either."""
    one, two = hand_in(store, "a"), hand_in(store, "b")
    with pytest.raises(StaleWrite):
        store.commit([to(one, "validated"), to(replace(two, version=7), "validated")])
    assert {state.phase for state in store.states()} == {"draft"}
    assert store.verify() == 2


def test_the_stored_content_serves_after_a_restart(store: SqliteStore, path: Path) -> None:
    """What is active comes back with its whole content, in the order of positions, whatever the files say by then."""
    for letter, route, position in (("a", "late", 9), ("b", "early", 1), ("c", "candidate", 0)):
        state = hand_in(store, letter, route, position)
        if route != "candidate":
            store.commit([to(state, "active")])
    store.close()
    again = SqliteStore(path)
    assert again.active() == [content("b", "early", 1), content("a", "late", 9)]
    again.close()


@pytest.mark.parametrize("phase", ["active", "canary"])
def test_a_route_has_one_active_revision_and_one_canary(store: GateStore, phase: str) -> None:
    """A second one is refused; handing over in one commit is how it is done."""
    one, two = hand_in(store, "a"), hand_in(store, "b")
    (one,) = store.commit([to(one, phase)])
    with pytest.raises(IllegalMove, match="another revision"):
        store.commit([to(two, phase)])
    assert store.state("default", "b" * 64) == two
    moves = hand_over(to(two, phase).move, one, NOW)
    store.commit([Transition(move, "gate", NOW) for move in moves])
    assert [state.phase for state in store.states("default")] == ["superseded", phase]


def test_evidence_between_transitions_is_kept_without_a_version(store: GateStore) -> None:
    """Saved often, it makes no entry and no write stale."""
    state = hand_in(store, "a")
    for pairs in (10, 20):
        store.save_evidence(state, observed(RULES, shadow=pairs))
    assert store.evidence("default", "a" * 64).shadow.num_candidate == 20
    assert store.state("default", "a" * 64) == state
    assert store.verify() == 1


def test_what_is_not_there_is_named(store: GateStore) -> None:
    """An unknown revision is a 404, for every read and write."""
    hand_in(store, "a")
    unknown = new_state("default", "e" * 64, NOW)
    for use in (
        lambda: store.state("default", "e" * 64),
        lambda: store.revision("other", "a" * 64),
        lambda: store.evidence("default", "e" * 64),
        lambda: store.commit([to(unknown, "active")]),
        lambda: store.save_evidence(unknown, observed(RULES)),
    ):
        with pytest.raises(UnknownRevision, match="has no revision") as caught:
            use()
        assert caught.value.status == 404


def test_the_same_revision_cannot_be_handed_in_twice(store: GateStore) -> None:
    """It has its history already."""
    hand_in(store, "a")
    with pytest.raises(StaleWrite, match="handed in before"):
        hand_in(store, "a")
    assert store.verify() == 1


def test_content_and_state_must_be_of_one_revision(store: GateStore) -> None:
    """A mix-up is refused before anything is written."""
    state = new_state("default", "b" * 64, NOW)
    with pytest.raises(IllegalMove, match="came with the state"):
        store.submit(content("a"), Transition(Move(state, state, "edited"), "cli", NOW))
    assert (store.states(), store.verify()) == ([], 0)


def test_the_log_is_read_in_parts(store: GateStore) -> None:
    """After a sequence number, up to a limit."""
    for letter in "abcde":
        hand_in(store, letter)
    assert [entry.seq for entry in store.log(after=2, limit=2)] == [3, 4]


def test_the_log_refuses_changes(store: GateStore, path: Path) -> None:
    """Neither update nor delete, even past our own code."""
    hand_in(store, "a")
    with sqlite3.connect(path) as raw:
        for statement in ("UPDATE audit SET hash = ''", "DELETE FROM audit"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                raw.execute(statement)
    raw.close()


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit SET body = CAST(replace(body, 'gate', 'bate') AS BLOB) WHERE seq = 2",
        "UPDATE audit SET hash = (SELECT hash FROM audit WHERE seq = 1) WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 3",
        "DELETE FROM audit",
        "UPDATE states SET body = CAST(replace(body, 'shadow', 'active') AS BLOB)",
        "UPDATE states SET phase = 'active'",
        "UPDATE states SET version = 4",
        "DELETE FROM states",
        "UPDATE revisions SET body = CAST(replace(body, '0.9', '0.1') AS BLOB)",
        "UPDATE audit SET seq = 9 WHERE seq = 3",
    ],
)
def test_verify_finds_every_kind_of_tampering(store: SqliteStore, path: Path, tampering: str) -> None:
    """Somebody with the file and the triggers out of the way: changed, removed, cut off, moved."""
    state = hand_in(store, "a")
    (state,) = store.commit([to(state, "validated")])
    store.commit([to(state, "shadow")])
    assert store.verify() == 3
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TRIGGER audit_keeps_entries")
        raw.execute("DROP TRIGGER audit_loses_no_entry")
        assert raw.execute(tampering).rowcount > 0
    raw.close()
    with pytest.raises(StoreDamaged):
        store.verify()


def test_an_entry_rewritten_with_its_hash_breaks_the_next_link(store: SqliteStore, path: Path) -> None:
    """A forged entry that agrees with itself does not agree with the one behind it."""
    state = hand_in(store, "a")
    store.commit([to(state, "validated")])
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TRIGGER audit_keeps_entries")
        ((body,),) = raw.execute("SELECT body FROM audit WHERE seq = 1").fetchall()
        forged = body.replace(b"file watcher", b"somebody else")
        raw.execute("UPDATE audit SET body = ?, hash = ? WHERE seq = 1", (forged, digest(forged)))
    raw.close()
    with pytest.raises(StoreDamaged, match="entry 2 does not follow"):
        store.verify()


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    """Noise, another version, a folder that is not there: each one message with the file's name."""
    noise = tmp_path / "noise.db"
    noise.write_bytes(b"not a database at all" * 100)
    newer = tmp_path / "newer.db"
    with sqlite3.connect(newer) as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    for path, words in (
        (noise, "noise.db"),
        (newer, "version 99"),
        (tmp_path / "none" / "gate.db", "cannot be opened"),
    ):
        with pytest.raises(StoreDamaged, match=words):
            SqliteStore(path)


def test_writes_are_durable_by_setting(store: SqliteStore) -> None:
    """Write-ahead log, and the disk is waited for at each commit."""
    assert store._database.all("PRAGMA journal_mode") == [("wal",)]
    assert store._database.all("PRAGMA synchronous") == [(2,)]
