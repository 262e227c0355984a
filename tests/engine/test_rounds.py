"""Rounds: draft, step, sample and walk in one piece change nothing that ordinary steps would say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from specproxy.config.schema import DrafterConfig
from specproxy.engine import warmup
from specproxy.engine.flight import Flight, Outcome
from specproxy.engine.rounds import Rounds
from specproxy.vocabulary import Decision, SamplingParams, Submission
from tests.support.device_path import use_device_path
from tests.support.driver import OFF, Answer, Driver
from tests.support.engines import Engines
from tests.support.identity import Identity, decision

DRAFTERS = {
    "ngram": DrafterConfig(type="ngram"),
    "eagle3": DrafterConfig(type="eagle3", path="house"),
    "mtp": DrafterConfig(type="mtp", path="house"),
    "medusa": DrafterConfig(type="medusa", path="house"),
    "layer_skip": DrafterConfig(type="layer_skip"),
    "draft_model": DrafterConfig(type="draft_model", path="house", options={"compile": "off"}),
}
IN_LANES = [name for name in DRAFTERS if name != "ngram"]
_BY_STEPS: dict[str, Answer] = {}
SAMPLING: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9}]


@pytest.fixture(scope="module")
def driver(cache_home: Path) -> Iterator[Driver]:
    """The house model on the GPU's path, in float32, every width allowed."""
    engines = Engines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        use_device_path(patch)
        for name, few in {"STEP_ROWS": (1, 8), "CHAIN_ROWS": (1, 2), "ROUND_LENGTHS": (1, 2), "REPEATS": 1}.items():
            patch.setattr(warmup, name, few)  # what things cost decides nothing here
        yield engines.build(DRAFTERS, dtype="float32", exactness="numeric")
    engines.close()


@pytest.fixture
def rounds(driver: Driver) -> Rounds:
    """The engine's."""
    assert driver.engine.rounds is not None
    return driver.engine.rounds


@pytest.fixture
def flights(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Flight]]:
    """What is launched and read, in order: ("start" | "follow" | "read", flight)."""
    seen: list[tuple[str, Flight]] = []

    def note(name: str) -> None:
        right = getattr(rounds, name)

        def wrapped(*args: Any) -> Flight | None:
            flight: Flight | None = right(*args)
            if flight is not None:
                seen.append((name, flight))
            return flight

        monkeypatch.setattr(rounds, name, wrapped)

    note("start")
    note("follow")
    wait = Flight.wait

    def waited(self: Flight) -> list[Outcome | None]:
        seen.append(("read", self))
        return wait(self)

    monkeypatch.setattr(Flight, "wait", waited)
    return seen


def submissions(
    driver: Driver, records: Sequence[dict[str, Any]], chosen: Decision, tokens: int = 24, **params: Any
) -> list[Submission]:
    """One submission for each record; lengths of prompts differ."""
    return [
        driver.submission(
            record["ids"][: 30 + 7 * i],
            chosen,
            seed=11 + i,
            params=SamplingParams(**({"max_tokens": tokens} | SAMPLING[i % len(SAMPLING)] | params)),
        )
        for i, record in enumerate(records)
    ]


def by_steps(driver: Driver, asked: Sequence[Submission]) -> list[Answer]:
    """What ordinary steps say, one sequence at a time, without drafts; each computed once for all tests."""
    engine, flying = driver.engine, driver.engine.flying
    engine.flying = None
    for s in asked:
        key = repr((s.prompt, s.seed, s.params))
        if key not in _BY_STEPS:
            _BY_STEPS[key] = driver.run([driver.submission(s.prompt, OFF, seed=s.seed, params=s.params)])[0]
    engine.flying = flying
    return [_BY_STEPS[repr((s.prompt, s.seed, s.params))] for s in asked]


def tokens_of(answers: Sequence[Answer]) -> list[list[int]]:
    """Tokens alone."""
    return [answer.tokens for answer in answers]


def test_plain_rounds(driver: Driver, mini: list[dict[str, Any]], flights: list[tuple[str, Flight]]) -> None:
    """Without drafts: the same tokens, for one sequence and for five, and nearly all of them by rounds."""
    for count in (1, 5):
        asked = submissions(driver, mini[:count], OFF)
        expected = by_steps(driver, asked)
        flights.clear()
        assert tokens_of(driver.run(asked)) == tokens_of(expected)
        assert len([flight for name, flight in flights if name == "read"]) >= 20


@pytest.mark.parametrize("name", [*IN_LANES, "eagle3_tree", "mtp_tree", "medusa_tree"])
def test_drafted_rounds(
    driver: Driver, mini: list[dict[str, Any]], flights: list[tuple[str, Flight]], name: str
) -> None:
    """Every device drafter: the same tokens for one and for three sequences at a time; drafts were accepted, and about
    as many as ordinary steps accept."""
    chosen = decision(name, 4)
    asked = submissions(driver, mini[:3], chosen)
    expected = by_steps(driver, asked)
    engine, held = driver.engine, driver.engine.flying
    engine.flying = None
    steps = sum(answer.stats.steps for answer in driver.run(submissions(driver, mini[:3], chosen)))
    engine.flying = held
    flights.clear()
    together = driver.run(asked)
    alone = [driver.run([one])[0] for one in submissions(driver, mini[:3], chosen)]
    assert tokens_of(together) == tokens_of(expected) == tokens_of(alone)
    drafter = name.removesuffix("_tree")
    assert {flight.key.drafter for _, flight in flights} - {""} == {drafter}  # nobody drafts for the last token
    drafts = [count for answer in together for count in answer.stats.drafts if count.drafter == drafter]
    assert sum(count.accepted for count in drafts) > 0
    for answers in (together, alone):
        assert abs(sum(answer.stats.steps for answer in answers) - steps) <= 0.15 * steps


def test_the_next_round_starts_before_the_last_is_read(
    driver: Driver, mini: list[dict[str, Any]], flights: list[tuple[str, Flight]]
) -> None:
    """One device drafter and nothing for the host to say: round after round follows, each launched before the one in
    front of it is read."""
    driver.run(submissions(driver, mini[:1], decision("eagle3", 3), tokens=40))
    order = [name for name, _ in flights]
    assert order.count("start") == 1
    assert order.count("follow") == order.count("read") - 1 > 5
    launched = [flight for name, flight in flights if name != "read"]
    for before, flight in pairwise(launched):
        assert flights.index(("follow", flight)) < flights.index(("read", before))


def test_a_host_drafter_sees_every_token_before_the_next_round(
    driver: Driver, mini: list[dict[str, Any]], flights: list[tuple[str, Flight]]
) -> None:
    """Where a host drafter may guess, rounds are read at once; the text is the same."""
    chosen = Decision("on", "r", drafters=("ngram", "eagle3"), auto=True, k_max=4, k_min=1)
    asked = submissions(driver, mini[:2], chosen)
    expected = by_steps(driver, asked)
    assert tokens_of(driver.run(asked)) == tokens_of(expected)
    assert "start" in [name for name, _ in flights]
    assert "follow" not in [name for name, _ in flights]


def test_logprobs_come_with_rounds(
    driver: Driver, mini: list[dict[str, Any]], flights: list[tuple[str, Flight]]
) -> None:
    """Logprobs of every token are those of ordinary steps, to a rounding."""
    asked = submissions(driver, mini[:2], decision("layer_skip", 3), logprobs=3)
    expected = by_steps(driver, asked)
    answers = driver.run(asked)
    assert flights
    for answer, other in zip(answers, expected, strict=True):
        assert [one.token for one in answer.logprobs] == [one.token for one in other.logprobs] == answer.tokens
        assert [one.logprob for one in answer.logprobs] == pytest.approx(
            [one.logprob for one in other.logprobs], abs=1e-4
        )


def test_what_rounds_cannot_do_goes_by_steps(
    driver: Driver, mini: list[dict[str, Any]], flights: list[tuple[str, Flight]]
) -> None:
    """Penalties and masks need the history of every node: no round is flown, and the drafter's text is the plain
    one."""
    for params in ({"repetition_penalty": 1.2}, {"min_tokens": 20}):
        asked = submissions(driver, mini[:1], decision("layer_skip", 3), **params)
        expected = by_steps(driver, asked)
        assert tokens_of(driver.run(asked)) == tokens_of(expected)
    assert flights == []


def test_seats_are_kept_while_others_end(
    driver: Driver, mini: list[dict[str, Any]], flights: list[tuple[str, Flight]]
) -> None:
    """Of four sequences the shortest ends: the other three go on in their lanes, and only when half of the lanes are
    empty do the rest move to fewer."""
    chosen = decision("layer_skip", 3)
    asked = [
        one
        for i, length in enumerate((8, 16, 30, 44))
        for one in submissions(driver, mini[i : i + 1], chosen, tokens=length, ignore_eos=True)
    ]
    expected = by_steps(driver, asked)
    flights.clear()
    assert tokens_of(driver.run(asked)) == tokens_of(expected)
    assert [flight.key.lanes for name, flight in flights if name == "start"][-3:] == [4, 2, 1]
    assert (4, 3) in {(flight.key.lanes, len(flight.plan.sequences)) for name, flight in flights if name == "follow"}


def test_a_batch_of_several_drafters(
    driver: Driver, rounds: Rounds, mini: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences of one step that draft with different drafters are drafted for on the device, drafter by drafter, and
    verified together; nothing changes."""
    asked = [
        one
        for i, name in enumerate(("eagle3", "layer_skip", "eagle3", "draft_model"))
        for one in submissions(driver, mini[i : i + 1], decision(name, 3))
    ]
    expected = by_steps(driver, asked)
    drafted: list[str] = []
    right = rounds.draft

    def noted(name: str, *args: Any) -> list[list[int]] | None:
        found = right(name, *args)
        drafted.extend([name] * (found is not None))
        return found

    monkeypatch.setattr(rounds, "draft", noted)
    answers = driver.run(asked)
    assert tokens_of(answers) == tokens_of(expected)
    assert set(drafted) == {"eagle3", "layer_skip", "draft_model"}
    assert all(answer.stats.drafts[0].accepted > 0 for answer in answers[::2])


def _between_steps(driver: Driver, asked: Sequence[Submission], act: Callable[[int], None]) -> dict[str, Answer]:
    """Run with ``act(number of the step)`` between steps; answers by id."""
    numbers = iter(range(10**9))
    answers = driver.run(asked, lambda: act(next(numbers)))
    return {submission.id: answer for submission, answer in zip(asked, answers, strict=True)}


def test_an_arrival_in_mid_flight(
    driver: Driver, mini: list[dict[str, Any]], flights: list[tuple[str, Flight]]
) -> None:
    """A request that arrives while a round is on its way is served, and neither text changes."""
    first, second = submissions(driver, mini[:2], decision("eagle3", 4), tokens=40)
    expected = by_steps(driver, [first, second])
    taken = Answer()
    driver.engine.submit(first)
    numbers, arrived = range(6), Answer()
    answers = {first.id: taken, second.id: arrived}

    def step() -> None:
        for delta in driver.engine.step():
            answers[delta.id].tokens += delta.tokens

    for _ in numbers:
        step()
    assert driver.engine.flying is not None
    assert driver.engine.flying.aloft is not None
    driver.engine.submit(second)
    while not driver.engine.idle:
        step()
    assert [taken.tokens, arrived.tokens] == tokens_of(expected)


def test_aborting_and_preempting_in_mid_flight(driver: Driver, mini: list[dict[str, Any]]) -> None:
    """One sequence is given up and one preempted while rounds are on their way: the others' texts, and the preempted
    one's, stay the same, and all pages come back."""
    asked = submissions(driver, mini[:3], decision("eagle3", 4), tokens=40)
    expected = by_steps(driver, asked)
    engine = driver.engine

    def act(number: int) -> None:
        if number == 8:
            engine.abort(asked[0].id)
        if number == 10:
            engine.scheduler.preempt(engine.scheduler.running[-1])

    answers = _between_steps(driver, asked, act)
    for submission, other in list(zip(asked, expected, strict=True))[1:]:
        assert answers[submission.id].tokens == other.tokens
    cut = answers[asked[0].id].tokens
    assert cut == expected[0].tokens[: len(cut)]
    assert engine.scheduler.pool.used == 0


def test_a_kill_switch_lands_the_flight(driver: Driver, mini: list[dict[str, Any]]) -> None:
    """A decision without drafters takes effect while rounds follow each other; back on again, the drafter goes on."""
    chosen = decision("mtp", 4)
    asked = submissions(driver, mini[:1], chosen, tokens=48)
    expected = by_steps(driver, asked)
    engine = driver.engine

    def act(number: int) -> None:
        if number == 6:
            engine.update(OFF, asked[0].id, None)
        if number == 12:
            engine.update(chosen, asked[0].id, None)

    answers = _between_steps(driver, asked, act)
    assert answers[asked[0].id].tokens == expected[0].tokens
    assert answers[asked[0].id].stats.drafts[0].accepted > 0


def test_unloading_a_drafter_in_mid_flight(driver: Driver, mini: list[dict[str, Any]]) -> None:
    """The drafter of a round on its way is unloaded, and loaded again: the text is the same."""
    asked = submissions(driver, mini[:1], decision("medusa", 3), tokens=32)
    expected = by_steps(driver, asked)

    def act(number: int) -> None:
        if number == 5:
            driver.assembled.unload_drafter("medusa")
        if number == 9:
            driver.assembled.load_drafter("medusa", DRAFTERS["medusa"])

    answers = _between_steps(driver, asked, act)
    assert answers[asked[0].id].tokens == expected[0].tokens


def test_the_end_of_the_context(driver: Driver, mini: list[dict[str, Any]]) -> None:
    """Close to the longest context a sequence goes on by ordinary steps, to its very end."""
    limit = driver.engine.runner.model.spec.max_len
    prompt = (mini[0]["ids"] * (limit // len(mini[0]["ids"]) + 1))[: limit - 30]
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    asked = [driver.submission(prompt, decision("layer_skip", 4), params=params)]
    answer = driver.run(asked)[0]
    assert answer.tokens == by_steps(driver, asked)[0].tokens
    assert len(answer.tokens) == 30
    assert answer.finish == "length"


CASES = [
    {
        "drafter": drafter,
        "temperature": t,
        "k": k,
        "together": together,
        "cache": cache,
        "preempt": preempt,
        "resume": r,
    }
    for drafter, t, k, together, cache, preempt, r in (
        ("eagle3", 0.0, 5, 4, "hit", True, False),
        ("eagle3", 0.0, 7, 1, "miss", False, False),
        ("mtp", 0.8, 3, 4, "miss", False, True),
        ("medusa", 0.8, 3, 1, "hit", True, True),
        ("layer_skip", 0.0, 7, 4, "hit", False, False),
        ("draft_model", 0.8, 8, 4, "miss", True, True),
        ("heads", 0.8, 4, 4, "hit", True, False),
        ("eagle3_tree", 0.8, 4, 4, "hit", True, False),
        ("mtp_tree", 0.0, 6, 1, "miss", False, True),
        ("medusa_tree", 0.8, 3, 4, "hit", True, False),
    )
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["drafter"]))
def test_identity_with_everything_else(driver: Driver, mini: list[dict[str, Any]], case: dict[str, Any]) -> None:
    """With cached prefixes, preemption, resumption and batches nothing changes that a client can see, but for the last
    bits of logprobs, which are left out."""
    identity = Identity(driver, max_tokens=20, logprobs=None)
    assert identity.mismatches(case | {"sampling": "plain", "n": 1}, mini[:4]) == []
