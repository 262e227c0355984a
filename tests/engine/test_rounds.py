"""Rounds: draft, step, sample and walk in one piece change nothing that ordinary steps would say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from specproxy.config.schema import DrafterConfig
from specproxy.drafters.base import DraftBatch, DraftContext, DraftRow
from specproxy.engine.drafting import Drafting
from specproxy.engine.drafts import Draft, Guess
from specproxy.engine.flight import Flight, Outcome
from specproxy.engine.rounds import Rounds
from specproxy.engine.sequence import Sequence as Running
from specproxy.vocabulary import Decision, SamplingParams, Submission
from tests.support.device_path import device_driver
from tests.support.driver import OFF, Answer, Driver
from tests.support.identity import Identity, decision

DRAFTERS = {
    "ngram": DrafterConfig(type="ngram"),
    "prediction": DrafterConfig(type="prediction"),
    "eagle3": DrafterConfig(type="eagle3", path="house"),
    "mtp": DrafterConfig(type="mtp", path="house"),
    "medusa": DrafterConfig(type="medusa", path="house"),
    "layer_skip": DrafterConfig(type="layer_skip"),
    "draft_model": DrafterConfig(type="draft_model", path="house", options={"compile": "off"}),
}
IN_LANES = [name for name in DRAFTERS if name not in ("ngram", "prediction")]
_BY_STEPS: dict[str, Answer] = {}
SAMPLING: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9}]


@pytest.fixture(scope="module")
def driver(cache_home: Path) -> Iterator[Driver]:
    """The house model on the GPU's path, in float32, every width allowed."""
    with device_driver(cache_home, DRAFTERS) as found:
        yield found


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


def renamed(submission: Submission) -> Submission:
    """The same, as another sequence."""
    return replace(submission, id=f"{submission.id} again")


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


def test_the_host_gives_drafts_to_rounds(
    driver: Driver, mini: list[dict[str, Any]], flights: list[tuple[str, Flight]]
) -> None:
    """A host drafter's guesses are verified in rounds, each read before the next is decided on; what is accepted is
    booked to it, and nothing changes, for one sequence and for three."""
    asked = [
        replace(one, prediction=answer.tokens)
        for one in submissions(driver, mini[:3], decision("prediction", 12), tokens=40)
        for answer in by_steps(driver, [one])
    ]
    expected = by_steps(driver, asked)
    for answers in (driver.run(asked), [driver.run([renamed(one)])[0] for one in asked]):
        assert tokens_of(answers) == tokens_of(expected)
        assert all(answer.stats.steps < len(answer.tokens) / 3 for answer in answers)
        assert all(sum(one.accepted for one in answer.stats.drafts) > len(answer.tokens) / 2 for answer in answers)
    given = [flight for _, flight in flights if any(order.given for order in flight.orders)]
    assert {flight.key.given for flight in given} == {15}
    assert not any(flight.ahead for flight in given)


def test_a_head_keeps_its_seat_while_the_host_drafts(
    driver: Driver, mini: list[dict[str, Any]], flights: list[tuple[str, Flight]]
) -> None:
    """With a head and a host drafter that knows half of the answer the head sits in the lane from first to last,
    whoever drafts; while the head does, rounds follow each other unread."""
    chosen = Decision("on", "r", drafters=("prediction", "eagle3"), k_max=4, k_min=4, adaptive=False)
    asked = submissions(driver, mini[:2], chosen, tokens=64)
    expected = by_steps(driver, asked)
    asked = [
        replace(one, prediction=other.tokens[: len(other.tokens) // 2])
        for one, other in zip(asked, expected, strict=True)
    ]
    for one in asked:
        driver.run([renamed(one)])  # work that is made for the first time is made with nobody in the lanes
    flights.clear()
    answers = [driver.run([one])[0] for one in asked]
    assert tokens_of(answers) == tokens_of(expected)
    assert {flight.key.drafter for _, flight in flights} == {"eagle3"}
    assert len({id(flight.seats) for name, flight in flights if name != "read"}) == len(asked)
    used = {count.drafter for answer in answers for count in answer.stats.drafts if count.accepted}
    assert used == set(chosen.drafters)
    assert {name for name, _ in flights} == {"start", "follow", "read"}


def test_guesses_of_the_host_are_judged_by_the_text_they_were_about(
    driver: Driver, mini: list[dict[str, Any]], flights: list[tuple[str, Flight]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While rounds follow each other unread, every guess of a host drafter that a round is booked with is what it says
    of the text before that round."""
    chosen = Decision("on", "r", drafters=("ngram", "eagle3"), auto=True, k_max=4)
    (one,) = submissions(driver, mini[1:2], chosen, tokens=64)
    booked: list[tuple[DraftRow, Guess]] = []
    right = Drafting.settle

    def noted(self: Drafting, s: Running, draft: Draft, path: Sequence[int], output: Sequence[int]) -> None:
        before = DraftRow(f"before {len(s.tokens)}", list(s.tokens), s.num_prompt, 4, "fresh", s.sampler, room=4)
        booked.extend((before, guess) for guess in draft.said.values())
        right(self, s, draft, path, output)

    monkeypatch.setattr(Drafting, "settle", noted)
    (answer,) = driver.run([one])
    assert answer.tokens == by_steps(driver, [one])[0].tokens
    assert "follow" in [name for name, _ in flights]
    assert len(booked) >= 3
    drafter, batch = driver.engine.drafting.drafters["ngram"], DraftBatch.allocate(1, 4)
    for row, guess in booked:
        drafter.prefill(DraftContext([row]))
        drafter.propose(DraftContext([row]), batch)
        assert guess.tokens == batch.tokens[0, : len(guess.tokens)].tolist()


def test_a_batch_in_which_the_host_drafts_for_some(
    driver: Driver, mini: list[dict[str, Any]], flights: list[tuple[str, Flight]]
) -> None:
    """Of three sequences in the same lanes one is drafted for by the host, two by a head: one round serves all."""
    chosen = Decision("on", "r", drafters=("prediction", "eagle3"), k_min=1, k_max=5)
    asked = submissions(driver, mini[:3], chosen, tokens=40)
    expected = by_steps(driver, asked)
    asked[1] = replace(asked[1], prediction=expected[1].tokens)
    answers = driver.run(asked)
    assert tokens_of(answers) == tokens_of(expected)
    mixed = [flight for _, flight in flights if flight.key.form and any(order.given for order in flight.orders)]
    assert mixed
    assert {count.drafter for count in answers[1].stats.drafts if count.accepted} >= {"prediction"}


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
