"""When audits run: one chunk at a time, within shares of the wall time, the oldest dropped where too many wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from specproxy.audit.job import AuditJob
from specproxy.audit.stock import CHUNK, StockPass
from specproxy.bundle import AuditBundle, AuditResult, Tolerance
from specproxy.engine.audits import PATIENCE_S, QUIET_S, Audits
from specproxy.wire.frames import Audit
from tests.support.auditing import Auditing

TOLERANCE = Tolerance(0.5, 0.4, 0.1, 1, 0, 1, 0, 1)


@dataclass
class Clock:
    """Seconds that pass only when a test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def engine(auditing: Callable[..., Auditing]) -> Auditing:
    """The house model, its tolerance known."""
    made = auditing()
    made.audits.tolerance = TOLERANCE
    return made


@pytest.fixture
def bundle(engine: Auditing, mini: list[dict[str, Any]]) -> AuditBundle:
    """An answer whose prompt takes several chunks."""
    return engine.answers([{"ids": (mini[0]["ids"] * 6)[: 3 * CHUNK]}], temperature=0.8)[0]


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every chunk of a stock pass that runs from now on."""
    seen: list[int] = []
    step = StockPass.step

    def noted(self: StockPass) -> Any:
        before = self._done
        rows = step(self)
        seen.append(self._done - before)
        return rows

    monkeypatch.setattr(StockPass, "step", noted)
    return seen


def on_clock(engine: Auditing, clock: Clock, **more: Any) -> Audits:
    """Audits of the same engine by another clock."""
    rest = {"measure": engine.audits.measure, "tolerance": TOLERANCE, "patience": 0.0} | more
    return Audits(engine.audits.target, engine.audits.runner, clock, **rest)


def run(audits: Audits, steps: int, busy: bool) -> list[AuditResult]:
    """What came of so many steps."""
    return [result for _ in range(steps) for result in audits.step(busy)]


def test_a_step_runs_at_most_one_chunk(engine: Auditing, bundle: AuditBundle, chunks: list[int]) -> None:
    """However many audits wait, no step takes more than one chunk of 64 tokens, or judges what one gave."""
    for i in range(3):
        engine.audits.add(Audit(replace(bundle, request_id=str(i))))
    found: list[AuditResult] = []
    while engine.audits.waiting:
        before = len(chunks)
        found += engine.audits.step(busy=False)
        assert len(chunks) - before <= 1
    assert max(chunks) <= CHUNK
    assert sum(chunks) == 3 * (len(bundle.prompt) + len(bundle.output) - 1)
    assert [result.request_id for result in found] == ["0", "1", "2"]
    assert engine.audits.step(busy=False) == []


def test_users_are_served_first(engine: Auditing, bundle: AuditBundle, mini: list[dict[str, Any]]) -> None:
    """With the default shares no chunk runs while a user's sequence waits or runs; afterwards all do."""
    scheduler = engine.driver.engine.scheduler
    engine.audits.add(Audit(bundle))
    seen: list[bool] = []

    def between() -> None:
        seen.append(scheduler.serves_users)
        if seen[-1]:
            assert engine.audits.due_in(True) > 1e9
            assert engine.audits.step(True) == []
        assert engine.audits._queue[0].job is None

    engine.driver.run([engine.driver.submission(mini[1]["ids"])], between)
    assert True in seen
    assert not scheduler.serves_users
    time.sleep(QUIET_S)
    assert engine.audits.due_in(False) == 0.0
    assert [result.verdict for result in run(engine.audits, 50, False)] in (["identical"], ["explained"])


@pytest.fixture
def slow_chunks(monkeypatch: pytest.MonkeyPatch, chunks: list[int]) -> Callable[[Clock, float], None]:
    """Lets every chunk from now on take so many seconds of a clock."""

    def make(clock: Clock, seconds: float) -> None:
        step = AuditJob.step

        def slowly(self: AuditJob) -> bool:
            clock.now += seconds
            return step(self)

        monkeypatch.setattr(AuditJob, "step", slowly)

    return make


def test_a_share_is_kept(engine: Auditing, bundle: AuditBundle, slow_chunks: Callable[[Clock, float], None]) -> None:
    """While users run, audits of a route take their share of the wall time, however much of it passes between."""
    clock = Clock()
    audits = on_clock(engine, clock)
    slow_chunks(clock, 0.01)
    for i in range(100):
        audits.add(Audit(replace(bundle, request_id=str(i)), busy_share=0.1))
    for _ in range(500):
        clock.now += 0.004
        audits.step(busy=True)
    used = clock.now - 500 * 0.004
    assert 0.09 < used / clock.now < 0.11


def test_many_routes_share_one_share(
    engine: Auditing, bundle: AuditBundle, slow_chunks: Callable[[Clock, float], None]
) -> None:
    """Users of a server with many routes pay no more for audits than those of one: the largest share, not the sum."""
    clock = Clock()
    audits = on_clock(engine, clock)
    slow_chunks(clock, 0.01)
    for i in range(100):
        audits.add(Audit(replace(bundle, request_id=str(i), route=f"route {i % 6}"), busy_share=0.1 - 0.01 * (i % 6)))
    for _ in range(500):
        clock.now += 0.004
        audits.step(busy=True)
    used = clock.now - 500 * 0.004
    assert 0.09 < used / clock.now < 0.11


def test_a_route_without_credit_does_not_hold_up_another(engine: Auditing, bundle: AuditBundle) -> None:
    """Audits of a route that may not run are passed over, in order of arrival within each route."""
    audits = on_clock(engine, Clock())
    for i, (route, share) in enumerate([("a", 0.0), ("b", 1.0), ("a", 0.0), ("b", 1.0)]):
        audits.add(Audit(replace(bundle, route=route, request_id=str(i)), idle_share=share))
    assert [result.request_id for result in run(audits, 60, False)] == ["1", "3"]
    assert (audits.waiting, audits.due_in(False)) == (2, float("inf"))


def test_the_oldest_is_dropped_and_said_so(engine: Auditing, bundle: AuditBundle) -> None:
    """A full queue lets go of the oldest audit that did not begin; every audit gets exactly one result."""
    audits = on_clock(engine, Clock(), limit=3)
    audits.add(Audit(replace(bundle, request_id="0")))
    audits.step(busy=False)
    for i in range(1, 6):
        audits.add(Audit(replace(bundle, request_id=str(i))))
    found = run(audits, 80, False)
    assert [r.request_id for r in found if r.verdict == "dropped"] == ["1", "2", "3"]
    assert sorted(r.request_id for r in found) == [str(i) for i in range(6)]


def test_an_audit_that_fails_ends_alone(engine: Auditing, bundle: AuditBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, or whatever the stock model raises, is the result of that audit; the next one runs."""
    step = AuditJob.step
    fails = iter([True])

    def step_or_fail(self: AuditJob) -> bool:
        if next(fails, False):
            raise RuntimeError("out of memory")
        return step(self)

    monkeypatch.setattr(AuditJob, "step", step_or_fail)
    first, second = engine.audit(bundle, bundle)
    assert (first.verdict, "out of memory" in first.note) == ("failed", True)
    assert second.verdict in ("identical", "explained")


@pytest.mark.parametrize("busy_share", [0.0, 1.0])
def test_the_tolerance_comes_first_within_the_same_shares(
    engine: Auditing, bundle: AuditBundle, busy_share: float
) -> None:
    """Before the first audit the tolerance is measured, a piece a step: while users run as far as audits may, so that a
    server that is never idle has audits too."""

    def measure() -> Generator[None, None, Tolerance]:
        yield
        yield
        return TOLERANCE

    clock = Clock()
    audits = on_clock(engine, clock, tolerance=None, measure=measure)
    audits.add(Audit(bundle, busy_share=busy_share))
    run(audits, 2, True)
    assert audits.tolerance is None
    run(audits, 1, True)
    assert (audits.tolerance == TOLERANCE) == (busy_share > 0.0)
    clock.now += QUIET_S
    run(audits, 3, False)
    assert audits.tolerance == TOLERANCE
    assert run(audits, 30, False)[0].tolerance == TOLERANCE


def test_an_engine_that_cannot_audit_says_why(engine: Auditing, bundle: AuditBundle) -> None:
    """Where the stock module is not whole every audit fails at once, with the reason."""
    audits = on_clock(engine, Clock(), why_not="in parts")
    audits.add(Audit(bundle))
    assert audits.due_in(True) == 0.0
    [result] = audits.step(busy=True)
    assert (result.verdict, result.note) == ("failed", "in parts")


def test_a_moment_between_two_requests_is_not_idle(engine: Auditing, bundle: AuditBundle, chunks: list[int]) -> None:
    """Whoever asks again as soon as an answer is there meets no chunk; once it is quiet, audits run."""
    clock = Clock()
    audits = on_clock(engine, clock)
    audits.add(Audit(bundle))
    for _ in range(5):
        audits.step(busy=True)
        clock.now += QUIET_S * 0.9
        assert audits.due_in(False) == pytest.approx(QUIET_S * 0.1)
        audits.step(busy=False)
    assert chunks == []
    clock.now += QUIET_S
    assert audits.due_in(False) == 0.0
    audits.step(busy=False)
    assert len(chunks) == 1


def test_an_audit_waits_a_while_for_an_idle_moment(engine: Auditing, bundle: AuditBundle, chunks: list[int]) -> None:
    """While users wait it takes its share only once it has waited so long; the longest that a result is late."""
    clock = Clock()
    audits = on_clock(engine, clock, patience=PATIENCE_S)
    audits.add(Audit(bundle, busy_share=1.0))
    assert audits.due_in(True) == pytest.approx(PATIENCE_S)
    clock.now += PATIENCE_S * 0.9
    audits.step(busy=True)
    assert chunks == []
    clock.now += PATIENCE_S * 0.2
    assert audits.due_in(True) == 0.0
    assert [result.verdict for result in run(audits, 50, True)] in (["identical"], ["explained"])


def test_a_pause_is_not_paid_back_by_a_burst(
    engine: Auditing, bundle: AuditBundle, slow_chunks: Callable[[Clock, float], None], chunks: list[int]
) -> None:
    """However long nothing ran, no more than one chunk of so many milliseconds comes at once."""
    clock = Clock()
    audits = on_clock(engine, clock)
    audits.add(Audit(bundle, busy_share=0.05))
    clock.now += 3600.0
    slow_chunks(clock, 0.02)
    for _ in range(5):
        audits.step(busy=True)
    assert len(chunks) == 1
