"""The identity experiment can fail: each fault it must catch is put in on purpose, and is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from specproxy.engine.threads import Threads
from specproxy.kernels import paged, plan
from specproxy.sampling.noise import Noise
from tests.support.driver import Driver
from tests.support.identity import Identity

CASE = {
    "temperature": 0.8,
    "drafter": "draft_model",
    "k": 5,
    "together": 4,
    "cache": "miss",
    "preempt": False,
    "resume": False,
    "sampling": "plain",
    "n": 1,
}


@pytest.fixture
def identity(assemble_engine: Callable[..., Driver]) -> Identity:
    """A fresh experiment (no baseline from before the fault) on the shared engine."""
    return Identity(assemble_engine(), max_tokens=40)


def test_without_a_fault_nothing_differs(identity: Identity, mini: list[dict[str, Any]]) -> None:
    """The control of the controls."""
    assert identity.mismatches(CASE, mini[:4]) == []


def test_noise_keyed_by_step_is_caught(
    identity: Identity, mini: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise that depends on how often it was asked for, not on the position, changes answers."""
    right, calls = Noise.row, iter(range(10**9))
    monkeypatch.setattr(Noise, "row", lambda self, position: right(self, position + next(calls) % 2))
    assert identity.mismatches(CASE, mini[:4]) != []


def test_a_stale_page_is_caught(
    identity: Identity, mini: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages found under a hash that forgets what came before hold another prompt's keys, and answers change."""
    from specproxy.engine import scheduler

    right = scheduler.page_hash
    records = [record | {"ids": [17 + i] * 63 + [9] + record["ids"]} for i, record in enumerate(mini[:4])]
    case = CASE | {"drafter": "off", "together": 1, "cache": "hit", "temperature": 0.0}
    assert identity.mismatches(case, records) == []
    monkeypatch.setattr(scheduler, "page_hash", lambda parent, tokens, how, salt: right(b"", tokens[-1:], how, salt))
    assert identity.mismatches(case, records) != []


def pad_to_the_end_of_the_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys padded to 64 behind the last row of a span, whatever block its other rows are in."""
    monkeypatch.setattr(paged, "KEY_BLOCK", 64)
    monkeypatch.setattr(plan, "pieces", lambda span: [span])


def test_keys_padded_to_64_are_caught(
    assemble_engine: Callable[..., Driver], mini: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With keys padded to 64 the last bits depend on the step's shape, which the logprobs show."""
    driver = assemble_engine(dtype="float32")
    pad_to_the_end_of_the_span(monkeypatch)
    identity = Identity(driver, max_tokens=60)
    case = CASE | {"drafter": "replay", "k": 8, "temperature": 0.0}
    assert identity.mismatches(case, mini[:6]) != []


def test_the_self_test_refuses_keys_padded_to_64(
    assemble_engine: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same fault costs the bitwise verdict at start: nothing is promised that does not hold."""
    from specproxy.engine.selftest import SelfTest

    model = assemble_engine(dtype="float32").engine.runner.model
    pad_to_the_end_of_the_span(monkeypatch)
    assert SelfTest(model, 64, Threads(1, 1)).run().exactness == "numeric"
