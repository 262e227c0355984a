"""One gate for all replicas: evidence adds up, edits are taken once, switches hold everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from specproxy.gate.states import GateState
from tests.ray.conftest import REPLICA, Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def states(cluster: Cluster, route: str) -> list[GateState]:
    """Every revision of a route, oldest first."""
    with cluster.store() as store:
        return store.states(route)


def policy(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    """``specproxy policy …`` against the replica that answers operators."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPECPROXY_")}
    command = [sys.executable, "-m", "specproxy", "policy", *words, "--admin", f"unix:{cluster.folder}/admin.sock"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


def body(text: str, **more: object) -> dict[str, object]:
    """A short request with a first message of its own."""
    return {"model": "house", "messages": [{"role": "user", "content": text}], "max_tokens": 6, "seed": 3} | more


def test_evidence_of_all_replicas_is_one(cluster: Cluster, eventually: Callable[..., None]) -> None:
    """Each audited answer is counted once in the store, whichever replica gave and audited it."""
    cluster.both()
    active = next(state for state in states(cluster, "gated") if state.phase == "active")

    def clean() -> int:
        with cluster.store() as store:
            return store.evidence("gated", active.revision).mismatches.clean

    before = clean()
    answers = [cluster.post(body(f"Question {i} of many.", metadata={"kind": "gated"})) for i in range(10)]
    assert len({answer.headers[REPLICA] for answer in answers}) == 2
    eventually(lambda: clean() >= before + len(answers), timeout_s=30, what="evidence of every answer")
    assert clean() == before + len(answers)


def test_an_edit_is_taken_once_and_everywhere(cluster: Cluster, eventually: Callable[..., None]) -> None:
    """Of an edit that both replicas read, a gated route becomes one candidate; a free one serves from both."""
    cluster.both()
    before = states(cluster, "gated"), states(cluster, "free")
    cluster.write_policy(gated=2, free=2)

    def served() -> set[str]:
        return {answer.headers["x-specproxy-k"] for answer in cluster.on_each(body("Which K?"), 8).values()}

    eventually(lambda: served() == {"2"}, timeout_s=20, what="the edit in both replicas")
    eventually(lambda: len(states(cluster, "gated")) > len(before[0]), timeout_s=20, what="a candidate")
    assert len(states(cluster, "gated")) == len(before[0]) + 1
    assert len(states(cluster, "free")) == len(before[1]) + 1
    still = cluster.on_each(body("Which K?", metadata={"kind": "gated"}))
    assert {answer.headers["x-specproxy-k"] for answer in still.values()} == {"4"}
    with cluster.store() as store:
        assert store.verify() == len(store.log())


def test_a_kill_switch_holds_in_every_replica(cluster: Cluster, eventually: Callable[..., None]) -> None:
    """A switch that one replica was told of is off in both, and on again in both when it is lifted."""
    cluster.both()

    def drafters() -> set[str]:
        return {answer.headers["x-specproxy-drafter"] for answer in cluster.on_each(body("Off?"), 8).values()}

    done = policy(cluster, "kill", "free", "--reason", "a test")
    assert done.returncode == 0, done.stderr + done.stdout
    eventually(lambda: drafters() == {"off"}, timeout_s=15, what="off in both")
    done = policy(cluster, "kill", "free", "--lift", "--reason", "a test")
    assert done.returncode == 0, done.stderr + done.stdout
    eventually(lambda: drafters() == {"ngram"}, timeout_s=15, what="on in both")
    with cluster.store() as store:
        assert store.verify() == len(store.log())


def test_the_gates_actor_may_die(cluster: Cluster, eventually: Callable[..., None]) -> None:
    """Requests are answered while the actor is gone; Ray starts it again on the same file, and edits are taken."""
    before = states(cluster, "free")
    killed = cluster.gate_actor()
    killed.kill()
    assert cluster.post(body("While it is gone.")).status_code == 200
    cluster.write_policy(gated=4, free=3)

    def served() -> set[str]:
        return {answer.headers["x-specproxy-k"] for answer in cluster.on_each(body("Which K?"), 8).values()}

    eventually(lambda: served() == {"3"}, timeout_s=30, what="the edit in both replicas")
    assert len(states(cluster, "free")) == len(before) + 1
    assert cluster.gate_actor().pid != killed.pid
