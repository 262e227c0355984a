"""specproxy policy log, verify, status and diff on a gate's file."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from specproxy.cli.main import main
from specproxy.errors import StoreDamaged
from specproxy.gate.evidence import no_evidence
from specproxy.gate.read_only import ReadOnlyStore
from specproxy.gate.rules import rules_for
from specproxy.gate.sqlite_store import SqliteStore
from specproxy.gate.states import GateState, Move, new_state
from specproxy.gate.store import Revision, Transition
from specproxy.policy.schema import Gate, KRange, Settings, Speculate

OLD, NEW = "a1b2c3d4" * 8, "0f1e2d3c" * 8
NOW = 1_700_000_000.0


def hand_in(store: SqliteStore, name: str, k: int, **match: object) -> GateState:
    """A revision of the route ``chat`` with drafts up to ``k``."""
    settings = Settings(speculate=Speculate(k=KRange(max=k)), gate=Gate(mode="auto"))
    content = Revision(
        route="chat",
        revision=name,
        position=0,
        match=dict(match),
        settings=msgspec.to_builtins(settings),
        drafters={"ngram": "n1"},
        created=NOW,
    )
    state = new_state("chat", name, NOW)
    return store.submit(content, Transition(Move(state, state, "handed in"), "key:ops", NOW))


def move(store: SqliteStore, state: GateState, phase: str, reason: str) -> GateState:
    """To another phase, with evidence of one audited answer."""
    rules = rules_for(store.revision(state.route, state.revision).effective())
    evidence = no_evidence(rules)
    evidence.mismatches.add(rules.mismatch, hard=False)
    after = replace(state, phase=phase, entered=NOW + 60)
    return store.commit([Transition(Move(state, after, reason), "gate", NOW + 60, evidence, rules)])[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the gate's file is."""
    return tmp_path / "gate.db"


@pytest.fixture
def store(file: Path) -> Iterator[SqliteStore]:
    """A server's store, open all the while: one active revision, one in shadow, one that was rejected."""
    made = SqliteStore(file)
    move(made, hand_in(made, OLD, 4), "active", "everything is proven")
    move(made, hand_in(made, NEW, 8, temperature={"ge": 0.5}), "shadow", "its drafters are loaded")
    move(made, hand_in(made, "dead" * 16, 2), "rejected", "not valid: [x]")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables do not wrap."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("store")
def test_the_log_says_who_moved_what_and_why(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In order, with times in UTC; cut by number, route and how many."""
    assert main(["policy", "log", "--db", str(file)]) == 0
    out = capsys.readouterr().out
    assert "2023-11-14 22:14:20" in out
    assert "draft → shadow" in out
    assert "not valid: [x]" in out
    assert main(["policy", "log", "--db", str(file), "--after", "2", "--limit", "3", "--json"]) == 0
    assert [entry["seq"] for entry in json.loads(capsys.readouterr().out)] == [4, 5, 6]
    assert main(["policy", "log", "--db", str(file), "--route", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.usefixtures("store")
def test_status_shows_what_is_on_its_way(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Phase, share and findings; what came to an end only where it is asked for."""
    assert main(["policy", "status", "--db", str(file)]) == 0
    out = capsys.readouterr().out
    assert OLD[:12] in out
    assert "100%" in out
    assert "open: mismatches (audit) +0.00%, n = 1" in out
    assert "dead" not in out
    assert main(["policy", "status", "--db", str(file), "--all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    phases = [(item["state"]["phase"], item["share"]) for item in found]
    assert phases == [("active", 1.0), ("shadow", 0.0), ("rejected", 0.0)]


@pytest.mark.usefixtures("store")
def test_diff_of_two_revisions(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Conditions and settings that differ; without names those that are active and on their way."""
    assert main(["policy", "diff", "chat", "--db", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"key": "speculate.k.max", "old": 4, "new": 8},
        {"key": "match.temperature.ge", "old": None, "new": 0.5},
    ]
    assert main(["policy", "diff", "chat", "dead", OLD[:6], "--db", str(file)]) == 0
    assert "speculate.k.max" in capsys.readouterr().out
    assert main(["policy", "diff", "chat", OLD[:6], OLD[:6], "--db", str(file)]) == 0
    assert "both say the same" in capsys.readouterr().out


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nosuch"], "route nosuch is not in the gate's file; it has chat"),
        (["chat", "ffff"], '"ffff" names no single revision of route chat; expected one of: a1b2c3d4a1b2 (active)'),
        (["chat", "a1"], '"a1" names no single revision'),
    ],
)
def test_what_cannot_be_compared_is_one_message(
    file: Path, capsys: pytest.CaptureFixture[str], names: list[str], message: str
) -> None:
    """With what there is."""
    assert main(["policy", "diff", *names, "--db", str(file)]) == 1
    assert message in capsys.readouterr().err


def test_a_log_that_was_changed_does_not_verify(
    store: SqliteStore, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 where it is whole, 1 with the entry where it is not, in both forms."""
    assert main(["policy", "verify", "--db", str(file)]) == 0
    assert capsys.readouterr().out.startswith("6 entries; ")
    store.close()
    with sqlite3.connect(file) as damaged:
        damaged.execute("DROP TRIGGER audit_keeps_entries")
        damaged.execute("UPDATE audit SET body = CAST(replace(body, 'key:ops', 'key:eve') AS BLOB) WHERE seq = 3")
    damaged.close()
    assert main(["policy", "verify", "--db", str(file)]) == 1
    assert "audit entry 3 was changed" in capsys.readouterr().err
    assert main(["policy", "verify", "--db", str(file), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["whole"] is False


def test_the_file_is_that_of_the_start_configuration(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is not there is not made; one that is no gate's file is an error."""
    assert main(["policy", "status", "--set", f"state.path={file}"]) == 1
    assert f"{file}: there is no such file" in capsys.readouterr().err
    assert not file.exists()
    file.write_bytes(b"no database, but long enough to be taken for one" * 30)
    assert main(["policy", "status", "--set", f"state.path={file}"]) == 1
    assert "file is not a database" in capsys.readouterr().err


def test_reading_neither_waits_for_a_writer_nor_writes(store: SqliteStore, file: Path) -> None:
    """A reader sees what was committed while a transaction is open, and cannot change it."""
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE states SET phase = 'paused' WHERE phase = 'shadow'")
    reader = ReadOnlyStore(file)
    started = time.monotonic()
    assert [state.phase for state in reader.states("chat")] == ["active", "shadow", "rejected"]
    assert reader.verify() == 6
    assert time.monotonic() - started < 5
    writer.execute("ROLLBACK")
    writer.close()
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.save_evidence(store.states("chat")[0], reader.evidence("chat", OLD))
    reader.close()


def test_an_empty_file_is_no_gate_store(file: Path) -> None:
    """It is not turned into one."""
    file.touch()
    with pytest.raises(StoreDamaged, match="has version 0"):
        ReadOnlyStore(file)
    assert file.stat().st_size == 0
