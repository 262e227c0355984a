"""Background work beside users: its share of the time, steps of its own, and who gives way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from specproxy.config.schema import DrafterConfig
from specproxy.engine.loop import Engine
from specproxy.engine.scheduler import Scheduler
from specproxy.engine.step import Step
from specproxy.vocabulary import Decision, SamplingParams, Submission
from tests.support.device_path import device_driver
from tests.support.driver import OFF, Driver

FOREVER = SamplingParams(temperature=0.0, max_tokens=1200, ignore_eos=True)
SHORT = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
LAYER_SKIP = Decision("on", "r", drafters=("layer_skip",), k_max=3, adaptive=False)


@dataclass
class Bench:
    """An engine whose time passes with its steps alone; what it did, step by step: for each that computed
    something the classes of those whose device seconds grew, and how long it took."""

    driver: Driver
    engine: Engine
    now: float = 0.0
    submitted: list[Submission] = field(default_factory=list)
    ended: dict[str, list[int]] = field(default_factory=dict)
    steps: list[tuple[frozenset[str], float]] = field(default_factory=list)
    tokens: dict[str, list[int]] = field(default_factory=dict)

    def submit(self, submission: Submission) -> None:
        """Queue it."""
        self.submitted.append(submission)
        self.engine.submit(submission)

    def step(self) -> None:
        """One step of the loop."""
        sequences = self.engine.scheduler.all()
        before, began = {s.id: s.stats.device_s for s in sequences}, self.now
        for delta in self.engine.step():
            self.tokens.setdefault(delta.id, []).extend(delta.tokens)
            if delta.finish_reason is not None:
                self.ended[delta.id] = self.tokens.pop(delta.id)
        grown = frozenset(s.submission.work for s in sequences if s.stats.device_s > before.get(s.id, 0.0))
        if grown:
            self.steps.append((grown, self.now - began))

    def seconds(self, work: str) -> float:
        """That steps of this class took."""
        return sum(seconds for grown, seconds in self.steps if grown == {work})

    def background(self, prompt: list[int], share: float, params: SamplingParams = SHORT) -> Submission:
        """Work of that class, to be submitted."""
        return self.driver.submission(prompt, OFF, params=params, work="background", busy_share=share)

    def drop(self) -> None:
        """Forget what still runs."""
        self.engine.land()
        for s in self.engine.scheduler.all():
            self.engine.abort(s.id)


@pytest.fixture
def make_bench(
    assemble_engine: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], Bench]]:
    """The house model, for so many sequences; a step takes 2 ms."""
    made: list[Bench] = []

    def make(max_sequences: int) -> Bench:
        driver = assemble_engine()
        right, run = driver.engine, driver.engine.runner.run
        bench = Bench(driver, right)

        def clock() -> float:
            return bench.now

        scheduler = Scheduler(right.scheduler.pool, max_sequences, True, right.drafting.loaded.release, clock)
        bench.engine = Engine(
            right.runner, scheduler, right.drafting, right._controller, right._vocab, clock, right.grammars
        )

        def timed(step: Step, *more: Any) -> Any:
            bench.now += 0.002
            return run(step, *more)

        monkeypatch.setattr(right.runner, "run", timed)
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.drop()


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_background_work_takes_its_share_and_no_more(
    make_bench: Callable[[int], Bench], mini: list[dict[str, Any]], share: float
) -> None:
    """Over a long run beside two users who always wait, with more background work than fits: within a tenth of the
    share and not above it; no step serves both, and no two background steps follow each other."""
    bench = make_bench(4)
    for record in mini[:2]:
        bench.submit(bench.driver.submission(record["ids"], params=FOREVER))
    number = 0
    while bench.now < 2.0:
        if not bench.engine.scheduler.background:
            number += 1
            bench.submit(bench.background(mini[2 + number % 5]["ids"], share))
        bench.step()
    assert len(bench.ended) >= 2
    assert bench.seconds("user") + bench.seconds("background") == pytest.approx(bench.now)
    assert 0.9 * share < bench.seconds("background") / bench.now <= share + 0.012 / bench.now
    kinds = [grown for grown, _ in bench.steps]
    assert ({"background"}, {"background"}) not in pairwise(kinds)


def test_without_a_share_background_work_is_for_idle_time(
    make_bench: Callable[[int], Bench], mini: list[dict[str, Any]]
) -> None:
    """While a user is there it takes no step; then it has every one, and so has work with a share."""
    bench = make_bench(4)
    user = bench.driver.submission(mini[0]["ids"], params=SHORT)
    bench.submit(user)
    work = [bench.background(mini[1]["ids"], 0.0), bench.background(mini[2]["ids"], 0.01)]
    bench.submit(work[0])
    while user.id not in bench.ended:
        bench.step()
    assert bench.seconds("background") == 0.0
    bench.submit(work[1])
    count = len(bench.steps)
    while not bench.engine.idle:
        bench.step()
    assert set(bench.ended) == {one.id for one in bench.submitted}
    assert len(bench.steps) - count < 30, "nothing waits for its share where nobody is there"


def test_a_user_waits_for_one_background_step_at_most(
    make_bench: Callable[[int], Bench], mini: list[dict[str, Any]]
) -> None:
    """Whenever a user comes, in the middle of background work that may take all of the time, its first chunk is
    computed after one other step at most; no step serves both, and no two background steps follow each other."""
    bench = make_bench(8)
    bench.submit(bench.background(mini[1]["ids"], 1.0, FOREVER))
    for wait in (1, 2, 3, 7):
        for _ in range(wait):
            bench.step()
        user = bench.driver.submission(mini[2]["ids"], params=SHORT)
        bench.submit(user)
        count = len(bench.steps)
        while user.id not in bench.ended:
            bench.step()
        kinds = [grown for grown, _ in bench.steps[count:]]
        assert {"user"} in kinds[:2]
        assert all(len(grown) == 1 for grown in kinds)
        assert ({"background"}, {"background"}) not in pairwise(kinds)


def test_background_work_makes_room_for_users(make_bench: Callable[[int], Bench], mini: list[dict[str, Any]]) -> None:
    """It has the only place, or all that is left of them: a user starts at once, and the other answer, begun anew, has
    the same tokens."""
    bench = make_bench(1)
    alone, disturbed = (bench.background(mini[3]["ids"], share) for share in (0.5, 0.5))
    bench.submit(alone)
    while alone.id not in bench.ended:
        bench.step()
    bench.submit(disturbed)
    while len(bench.tokens.get(disturbed.id, [])) < 4:
        bench.step()
    user = bench.driver.submission(mini[4]["ids"], params=SHORT)
    bench.submit(user)
    bench.step()
    assert [s.id for s in bench.engine.scheduler.running] == [user.id]
    while not bench.engine.idle:
        bench.step()
    assert list(bench.ended) == [alone.id, user.id, disturbed.id]
    assert bench.ended[disturbed.id] == bench.ended[alone.id]


def test_prompts_of_background_work_do_not_keep_answers_waiting(
    make_bench: Callable[[int], Bench], mini: list[dict[str, Any]]
) -> None:
    """With a prompt of a user, an answer of a user and background prompts at once, the answer gets a token within every
    four steps."""
    bench = make_bench(8)
    answer = bench.driver.submission(mini[0]["ids"], params=FOREVER)
    bench.submit(answer)
    while answer.id not in bench.tokens:
        bench.step()
    bench.submit(bench.driver.submission((mini[1]["ids"] * 40)[:1500], params=SHORT))
    for record in mini[2:5]:
        bench.submit(bench.background((record["ids"] * 40)[:1000], 0.5))
    at = [len(bench.steps)]
    while len(at) < 10:
        seen = len(bench.tokens[answer.id])
        bench.step()
        if len(bench.tokens[answer.id]) > seen:
            at.append(len(bench.steps))
    assert max(b - a for a, b in pairwise(at)) <= 4


@pytest.fixture(scope="module")
def device(cache_home: Path) -> Iterator[Driver]:
    """The house model on a GPU's path, with rounds."""
    with device_driver(cache_home, {"layer_skip": DrafterConfig(type="layer_skip")}) as found:
        yield found


def test_background_work_beside_rounds(device: Driver, mini: list[dict[str, Any]]) -> None:
    """Where users' rounds follow each other unread, background work gets its turns and the users theirs, no step serves
    both, and all have the tokens that they have alone."""
    long = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    user = [device.submission(mini[0]["ids"][:40], LAYER_SKIP, params=long) for _ in range(2)]
    work = [
        device.submission(mini[1]["ids"][:40], LAYER_SKIP, params=SHORT, work="background", busy_share=1.0)
        for _ in range(2)
    ]
    alone = [device.run([one])[0] for one in (user[0], work[0])]
    engine, began = device.engine, device.engine.flying
    assert began is not None
    classes: list[str] = []
    both: list[set[str]] = []

    def note() -> None:
        flight = began.aloft
        if flight is not None:
            both.append({s.submission.work for s in flight.plan.sequences})
            classes.append(flight.plan.sequences[0].submission.work)

    together = device.run([user[1], work[1]], note)
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert all(len(kinds) == 1 for kinds in both)
    assert "background" in classes[: len(classes) - classes[::-1].index("user")], "beside the user, not behind"
    assert engine.idle
