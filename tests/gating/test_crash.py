"""An engine that dies while users are served by a candidate."""

from __future__ import annotations

from msgspec.structs import replace

from specproxy.server.gating.gate import Gate
from specproxy.server.gating.samples import Sample
from specproxy.server.gating.standing import server_status
from specproxy.vocabulary import Delta, SamplingParams, Submission
from tests.gating.desk import facts, only, policy


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
    moved = {"route": "default", "to": "rolled_back"}
    count = gate.metrics.registry.get_sample_value
    assert count("specproxy_gate_moves_total", moved | {"by": "gate"}) == 1
    assert count("specproxy_gate_moves_total", moved | {"by": "person"}) is None
    assert all(gate.decide(facts(f"user {number}")).decision.arm == "active" for number in range(50))


async def test_a_candidate_that_serves_nobody_now_is_not_blamed(gate: Gate) -> None:
    """An engine may die of other things."""
    submit(gate, "active")
    gate.backend.on_lost(None)  # type: ignore[arg-type]
    await gate.tick()
    states = await gate.book.ledger.call(lambda store: store.states())
    assert [state.phase for state in states] == ["active", "canary"]


async def test_a_route_that_has_become_slower_than_plain_decoding_is_warned_of(gate: Gate) -> None:
    """Traffic drifts after a promotion; the hold-out shows it, once it is proven and not before."""
    revision = gate.book.active["default"].revision
    active = Sample("default", revision, "active", 100, 1.0, 0.02, 90.0, 0.005, 0.1)
    warned = []
    for number in range(40):
        gate.samples.take(replace(active, tokens_per_s=90.0 + number % 5))
        gate.samples.take(replace(active, arm="plain", tokens_per_s=100.0))
        warned.append([line for line in server_status(gate).warnings if "slower than plain decoding" in line])
    assert not warned[4]
    assert "route default is slower than plain decoding now: -8" in warned[-1][0]


async def test_a_broken_edit_changes_nothing(gate: Gate) -> None:
    """It is reported, and the candidate before it goes on."""
    folder = gate.policies.directory
    (folder / "all.yaml").write_text(policy(only("{drafters: nobody}")))
    assert not gate.policies.reload()
    await gate.tick()
    assert "nobody" in str(gate.policies.error)
    states = await gate.book.ledger.call(lambda store: store.states())
    assert [state.phase for state in states] == ["active", "canary"]
