"""An engine that dies while users are served by a candidate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from specproxy.policy.watch import PolicyStore
from specproxy.server.engine_backend import EngineBackend
from specproxy.server.gating.gate import Gate
from specproxy.server.metrics import Metrics
from specproxy.vocabulary import Delta, ModelInfo, Numerics, SamplingParams, Submission
from specproxy.wire.frames import Hello
from tests.gating.desk import CATALOGUE, facts, only, policy, prove

NUMERICS = Numerics("f", "cpu", "bfloat16", "2", "bitwise", [1], 64, 1, 1, "fused")
HELLO = Hello(1, ModelInfo("house", "m", 2048, 100, [0]), NUMERICS, [], 10, 64, 8, 0.1)


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    """A gate whose candidate is in canary; its backend believes in an engine."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "all.yaml").write_text(policy(only("off")))
    backend = EngineBackend()
    backend.hello, backend.state = HELLO, "ready"
    policies = PolicyStore(folder, CATALOGUE)
    made = Gate(policies, backend, Metrics())
    backend.observers.append(made)
    await made.open(tmp_path / "gate.db")
    (folder / "all.yaml").write_text(policy(only("{drafters: ngram}")))
    policies.reload()
    await made.tick()
    if made.book.change is None:
        raise AssertionError("the edit made no candidate")
    prove(made.book.change.members["default"], shadow=300, clean=299)
    await made.tick()
    yield made
    await made.close()


def submit(gate: Gate, arm: str) -> list[Delta]:
    """A stream of that arm; what it is told of grows in the list."""
    for number in range(1000):
        decision = gate.decide(facts(f"user {number}")).decision
        if decision.arm == arm:
            told: list[Delta] = []
            submission = Submission(f"{arm}-{number}", [1, 2], 3, SamplingParams(), decision)
            gate.backend.start(submission, told.append)
            return told
    raise AssertionError(f"nobody is served by the arm {arm}")


async def test_its_streams_go_on_plainly_and_it_is_rolled_back(gate: Gate) -> None:
    """What another engine process gets has no drafter of the candidate, so that it cannot die of it again."""
    candidate, active = submit(gate, "candidate"), submit(gate, "active")
    assert [decision.drafters for decision in gate.backend.decisions] == [("ngram",), ()]
    gate.backend.on_lost(None)  # type: ignore[arg-type]
    assert [decision.drafters for decision in gate.backend.decisions] == [(), ()]
    assert (candidate, active) == ([], [])
    await gate.tick()
    states = await gate.book.ledger.call(lambda store: store.states())
    assert [state.phase for state in states] == ["active", "rolled_back"]
    assert all(gate.decide(facts(f"user {number}")).decision.arm == "active" for number in range(50))


async def test_a_candidate_that_serves_nobody_now_is_not_blamed(gate: Gate) -> None:
    """An engine may die of other things."""
    submit(gate, "active")
    gate.backend.on_lost(None)  # type: ignore[arg-type]
    await gate.tick()
    states = await gate.book.ledger.call(lambda store: store.states())
    assert [state.phase for state in states] == ["active", "canary"]


async def test_a_broken_edit_changes_nothing(gate: Gate) -> None:
    """It is reported, and the candidate before it goes on."""
    folder = gate.policies.directory
    (folder / "all.yaml").write_text(policy(only("{drafters: nobody}")))
    assert not gate.policies.reload()
    await gate.tick()
    assert "nobody" in str(gate.policies.error)
    states = await gate.book.ledger.call(lambda store: store.states())
    assert [state.phase for state in states] == ["active", "canary"]
