"""Answers with a grammar: legal, ended by it, and the same with speculation, after a resume and in an audit."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any

import pytest
from msgspec.structs import replace

from specproxy.config.schema import DrafterConfig
from specproxy.engine.auditing import make_audits
from specproxy.engine.drafting import Drafting, legal_nodes
from specproxy.engine.drafts import Draft
from specproxy.engine.round_shapes import _plain
from specproxy.engine.sequence import Sequence
from specproxy.structured.schemas import ANY_OBJECT, AnswerSchema, compile_schema
from specproxy.text.template import ChatTemplate
from specproxy.text.tokenizer import Tokenizer
from specproxy.vocabulary import Decision, SamplingParams
from tests.support.auditing import Auditing
from tests.support.driver import OFF, Answer, Driver
from tests.support.prompts import HOUSE

DRAFTERS = {
    "grammar": DrafterConfig(type="grammar"),
    "ngram": DrafterConfig(type="ngram"),
    "eagle3": DrafterConfig(type="eagle3", path="house"),
    "draft_model": DrafterConfig(type="draft_model", path="house"),
    "replay": DrafterConfig(type="replay", options={"shape": "mixed"}),
}
EVENT = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 30},
        "priority": {"enum": ["low", "medium", "high"]},
        "attendees": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 3},
        "remote": {"type": "boolean"},
    },
    "required": ["title", "priority", "attendees", "remote"],
    "additionalProperties": False,
}
SCHEMAS = {"event": compile_schema(EVENT, "s", strict=True), "object": compile_schema(ANY_OBJECT, "s", strict=True)}
TEMPERATURES = (0.0, 0.8)
pytestmark = pytest.mark.timeout(300)  # the first test builds an engine with all of these drafters

ARMS = [
    ("grammar", 8, 1),
    ("ngram", 8, 1),
    ("eagle3", 4, 1),
    ("eagle3", 4, 2),
    ("draft_model", 3, 1),
    ("replay", 6, 2),
    ("auto", None, 1),
]
"""Drafter, K, and width of the tree."""


@pytest.fixture(scope="module")
def driver(assemble_engine: Callable[..., Driver]) -> Driver:
    """The house model with drafters of every kind."""
    return assemble_engine(DRAFTERS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The house model's."""
    return Tokenizer.load(HOUSE)


@pytest.fixture(scope="module")
def prompt(tokenizer: Tokenizer) -> list[int]:
    """A request for JSON."""
    template = ChatTemplate.load(HOUSE)
    assert template is not None
    text = "Write a calendar event as JSON with title, priority, attendees and remote. Ann meets Bob about the budget."
    return tokenizer.encode(template.render([{"role": "user", "content": text}]), special=True)


@pytest.fixture(scope="module")
def plain(driver: Driver, prompt: list[int]) -> dict[tuple[str, float], Answer]:
    """Answers without speculation, by schema and temperature."""
    asked = [(name, temperature) for name in SCHEMAS for temperature in TEMPERATURES]
    answers = driver.run([driver.submission(prompt, OFF, params=params_of(*one)) for one in asked])
    return dict(zip(asked, answers, strict=True))


def params_of(name: str, temperature: float) -> SamplingParams:
    """What these tests ask for."""
    return SamplingParams(temperature=temperature, max_tokens=160, grammar=SCHEMAS[name].grammar, logprobs=1)


def decision(drafter: str, k: int | None, width: int) -> Decision:
    """A route for one drafter, or for all of them."""
    if drafter == "auto":
        return Decision("auto", "r", drafters=tuple(name for name in DRAFTERS if name != "replay"), auto=True)
    return Decision(f"{drafter}{width}", "r", drafters=(drafter,), k_max=k, k_min=k or 0, tree_width=width)


def text_of(tokenizer: Tokenizer, answer: Answer) -> str:
    """The text before the token that ended it."""
    return tokenizer.decode(answer.tokens[:-1] if answer.finish == "stop" else answer.tokens)


def test_every_answer_that_stops_has_its_schema(plain: dict[tuple[str, float], Answer], tokenizer: Tokenizer) -> None:
    """A small schema is answered to its end, and a stop is only ever the grammar's."""
    for (name, _), answer in plain.items():
        schema: AnswerSchema = SCHEMAS[name]
        verdict = schema.judge(text_of(tokenizer, answer), complete=answer.finish == "stop")
        assert verdict in ("valid", "truncated")
        assert answer.finish == "stop" or name != "event"


@pytest.mark.parametrize(("drafter", "k", "width"), ARMS)
def test_speculation_changes_nothing(
    driver: Driver, prompt: list[int], plain: dict[tuple[str, float], Answer], drafter: str, k: int | None, width: int
) -> None:
    """Tokens, logprobs and ends are those of plain decoding, alone and together, whoever drafts chains or trees."""
    chosen = decision(drafter, k, width)
    submissions = [
        driver.submission(prompt, chosen, params=params_of(*one), prediction=plain[one].tokens) for one in plain
    ]
    answers = [driver.run([submission])[0] for submission in submissions[:2]] + driver.run(submissions[2:])
    assert [answer.visible() for answer in answers] == [answer.visible() for answer in plain.values()]
    assert sum(counts.accepted for answer in answers for counts in answer.stats.drafts) > 0


def test_forced_tokens_are_counted_and_right(driver: Driver, prompt: list[int]) -> None:
    """The grammar's own drafter says keys, brackets and the end before any model does; the stats count them."""
    answer = driver.run([driver.submission(prompt, decision("grammar", 16, 1), params=params_of("event", 0.0))])[0]
    [counts] = answer.stats.drafts
    assert counts.drafter == "grammar"
    assert counts.drafted >= 8
    assert counts.accepted >= 0.8 * counts.drafted
    assert answer.stats.steps < len(answer.tokens)


@pytest.mark.parametrize("drafter", ["ngram", "eagle3"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_what_is_forced_goes_on_behind_other_drafts(
    driver: Driver,
    prompt: list[int],
    plain: dict[tuple[str, float], Answer],
    monkeypatch: pytest.MonkeyPatch,
    drafter: str,
    temperature: float,
) -> None:
    """Behind a chain, or where it was cut, come the tokens that the grammar forces. Nothing changes, each drafter is
    booked with its own."""
    drafts: list[Draft] = []
    accepted: list[int] = []
    right = Drafting.settle

    def noted(self: Drafting, s: Sequence, draft: Draft, path: Rows[int], output: Rows[int]) -> None:
        drafts.append(draft)
        accepted.append(len(path))
        right(self, s, draft, path, output)

    monkeypatch.setattr(Drafting, "settle", noted)
    chosen = Decision("both", "r", drafters=(drafter, "grammar"), k_min=1, k_max=8)
    answer = driver.run([driver.submission(prompt, chosen, params=params_of("event", temperature))])[0]
    assert answer.visible() == plain["event", temperature].visible()
    longer = [draft for draft in drafts if draft.added]
    assert longer
    assert {draft.extender for draft in longer} == {"grammar"}
    assert all(len(draft.tokens) <= 8 for draft in drafts)
    counts = {one.drafter: one for one in answer.stats.drafts}
    assert counts["grammar"].drafted >= sum(draft.added for draft in longer)
    assert sum(one.drafted for one in counts.values()) == sum(len(draft.tokens) for draft in drafts)
    assert sum(one.accepted for one in counts.values()) == sum(accepted)


@pytest.mark.parametrize("drafter", ["ngram", "eagle3"])
def test_a_killed_engine_goes_on_with_the_same_text(
    driver: Driver, prompt: list[int], plain: dict[tuple[str, float], Answer], drafter: str
) -> None:
    """Resubmitted with what was generated, wherever it was cut, an answer ends as it would have."""
    for one, whole in plain.items():
        cuts = {1, len(whole.tokens) // 2, len(whole.tokens) - 1}
        submissions = [
            driver.submission(prompt, decision(drafter, 4, 1), params=params_of(*one), generated=whole.tokens[:cut])
            for cut in sorted(cuts)
        ]
        for submission, rest in zip(submissions, driver.run(submissions), strict=True):
            assert submission.generated + rest.tokens == whole.tokens
            assert rest.finish == whole.finish


def test_a_draft_ends_before_its_first_illegal_token(driver: Driver, tokenizer: Tokenizer) -> None:
    """Of a tree the nodes that the grammar can reach stay; nothing stays behind the end."""
    [opens, closes, word] = tokenizer.encode("{", special=False) + tokenizer.encode("}", special=False) + [700]
    sampler = _sequence(driver, "object").sampler
    tokens = [opens, word, closes, 2, 2, opens]
    parents = [-1, -1, 0, 2, 3, 1]
    assert legal_nodes(sampler, tokens, parents, range(6)) == [0, 2, 3]


def test_rounds_on_the_device_leave_grammars_to_ordinary_steps(driver: Driver) -> None:
    """Masks are the host's, so what has one is never part of a captured round."""
    sequence = _sequence(driver, "event")
    sequence.computed = len(sequence.tokens) - 1
    assert not _plain(sequence)


def _sequence(driver: Driver, name: str) -> Any:
    """A sequence that was submitted and has taken no step; it is taken back."""
    submission = driver.submission([5, 6, 7], params=params_of(name, 0.0))
    driver.engine.submit(submission)
    sequence = driver.engine.scheduler.find(submission.id)
    driver.engine.abort(submission.id)
    return sequence


def test_a_broken_grammar_is_the_request_s_fault(driver: Driver, prompt: list[int]) -> None:
    """It comes back as a 400, and nothing else happens."""
    params = SamplingParams(grammar="start: nothing", max_tokens=4)
    [answer] = driver.run([driver.submission(prompt, params=params)])
    assert answer.finish == "error"
    assert "cannot be compiled" in str(answer.error)


def test_audits_follow_the_grammar(driver: Driver, prompt: list[int], plain: dict[tuple[str, float], Answer]) -> None:
    """Honest answers are recognised; one with an illegal token is not this model's."""
    auditing = Auditing(driver, make_audits(driver.assembled))
    bundles = [
        auditing.bundle(driver.submission(prompt, params=params_of(*one)), answer) for one, answer in plain.items()
    ]
    forged = replace(bundles[0], output=[700, *bundles[0].output[1:]])
    found = [result.verdict for result in auditing.audit(*bundles, forged)]
    assert set(found[:-1]) <= {"identical", "explained"}
    assert found[-1] == "hard"
