"""Answers of real engines are recognised, and whatever is changed in them is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from specproxy.bundle import AuditBundle, Tolerance
from tests.support.auditing import Auditing
from tests.support.engines import HOUSE_DRAFTERS

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "top_p": {"temperature": 0.8, "top_p": 0.85},
    "min_p": {"temperature": 0.8, "min_p": 0.05, "top_k": 50},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.3},
    "bias": {"temperature": 0.7, "logit_bias": {2: -3.0, 270: 2.0}, "min_tokens": 12},
    "stop_token": {"temperature": 0.8, "stop_token_ids": (13, 15, 270)},
    "no_eos": {"temperature": 0.8, "ignore_eos": True},
}


DRAFTERS = {"bfloat16": ["off", "ngram", "draft_model"], "float32": ["ngram", "off"]}
MODELS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "float32": {"dtype": "float32", "exactness": "numeric", "drafters": {"ngram": HOUSE_DRAFTERS["ngram"]}},
}
"""The house model as served, bitwise and compiled where it can be; and without any promise but its precision."""


@pytest.mark.parametrize(("dtype", "shift", "count"), [("float32", 1, 1), ("bfloat16", 0, 1), ("bfloat16", 2, 2)])
def test_honest_answers_are_recognised(
    auditing: Callable[..., Auditing], mini: list[dict[str, Any]], dtype: str, shift: int, count: int
) -> None:
    """Every way to sample, drafted and plain, several choices, ended by any reason: identical or explained, and mostly
    the former."""
    engine, drafters = auditing(**MODELS[dtype]), DRAFTERS[dtype]
    bundles = [
        bundle
        for i, params in enumerate(SAMPLING.values())
        for bundle in engine.answers(mini[i : i + count], drafters[(i + shift) % len(drafters)], choices=2, **params)
    ]
    results = engine.audit(*bundles)
    assert {result.verdict for result in results} <= {"identical", "explained"}
    assert sum(result.explained for result in results) <= (0.01 * sum(result.tokens for result in results))
    assert [result.tokens for result in results] == [len(bundle.output) for bundle in bundles]
    assert {bundle.finish_reason for bundle in bundles} == {"stop", "length"}


@pytest.fixture
def engine(auditing: Callable[..., Auditing]) -> Auditing:
    """The bf16 house model."""
    return auditing()


@pytest.fixture
def sampled(engine: Auditing, mini: list[dict[str, Any]]) -> AuditBundle:
    """A sampled answer that ran into max_tokens."""
    found = engine.answers(mini[:6], temperature=0.9, ignore_eos=True)
    return next(bundle for bundle in found if bundle.finish_reason == "length")


def test_a_flipped_token_is_found(engine: Auditing, sampled: AuditBundle) -> None:
    """One other token, wherever it stands: a hard mismatch there, with both ids and their scores."""
    for at in (0, 20, len(sampled.output) - 1):
        output = list(sampled.output)
        output[at] = (output[at] + 1000) % 8192
        [result] = engine.audit(replace(sampled, output=output))
        assert result.verdict == "hard"
        first = next(finding for finding in result.findings if not finding.explained)
        assert first.position == len(sampled.prompt) + at
        assert (first.served, first.expected) == (output[at], sampled.output[at])
        assert first.expected_score is not None
        assert first.served_score is not None
        assert first.expected_score > first.served_score


@pytest.mark.parametrize("at", [3, 20, -1])
def test_a_dropped_token_is_found(engine: Auditing, sampled: AuditBundle, at: int) -> None:
    """An answer from which a token was taken, be it the last one, is not the model's."""
    output = list(sampled.output)
    del output[at]
    assert engine.verdict(replace(sampled, output=output)) == "hard"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"choice": 5},
        {"finish_reason": "stop"},
        {"finish_reason": "stop", "stop_token": 7},
        {"stop_token": 7},
    ],
    ids=str,
)
def test_a_wrong_fact_is_found(engine: Auditing, sampled: AuditBundle, change: dict[str, Any]) -> None:
    """Another seed, choice or reason to end than the answer was drawn with is a hard mismatch."""
    assert engine.verdict(replace(sampled, **change)) == "hard"


def test_wrong_parameters_are_found(engine: Auditing, sampled: AuditBundle) -> None:
    """So is another temperature, a penalty, or a limit that the answer exceeds."""
    for change in ({"temperature": 3.0}, {"repetition_penalty": 3.0}, {"max_tokens": 10}, {"max_tokens": 500}):
        assert engine.verdict(replace(sampled, params=replace(sampled.params, **change))) == "hard", change


def test_an_answer_behind_its_end_is_found(engine: Auditing, mini: list[dict[str, Any]]) -> None:
    """A token that follows the end-of-sequence token is found even where it is the likeliest one."""
    ended = next(b for b in engine.answers(mini[:8], temperature=0.0, max_tokens=120) if b.finish_reason == "stop")
    for reason in ("stop", "abort"):
        longer = replace(ended, output=[*ended.output, 2], stop_token=2, finish_reason=reason)
        assert engine.verdict(longer) == "hard"


def test_an_aborted_answer_is_checked_as_far_as_it_goes(engine: Auditing, sampled: AuditBundle) -> None:
    """A client that left, or a stop string, may end an answer anywhere; its tokens are checked all the same."""
    part = replace(sampled, output=sampled.output[:11], finish_reason="abort")
    assert engine.verdict(part) in ("identical", "explained")
    assert engine.verdict(replace(part, finish_reason="stop", stop=("\n",))) in ("identical", "explained")
    assert engine.verdict(replace(part, finish_reason="stop")) == "hard"
    assert engine.verdict(replace(part, output=[*part.output[:-1], 77])) == "hard"


def test_an_id_that_is_no_token_is_found(engine: Auditing, sampled: AuditBundle) -> None:
    """An answer with an id outside the vocabulary is hard at that place; tokens behind it are not looked at."""
    [result] = engine.audit(replace(sampled, output=[*sampled.output[:5], 8192, *sampled.output[5:]]))
    assert (result.verdict, result.tokens, result.findings[0].served) == ("hard", 6, 8192)


def test_what_cannot_be_checked_says_why(engine: Auditing, sampled: AuditBundle) -> None:
    """Another model's answer, one that failed, one without a prompt: no verdict, and the reason."""
    for change, word in (
        ({"fingerprint": "0" * 16}, "fingerprint"),
        ({"finish_reason": "error"}, "error"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [9000]}, "prompt"),
    ):
        [result] = engine.audit(replace(sampled, **change))
        assert result.verdict == "failed"
        assert word in result.note


def test_other_architectures_are_audited_by_their_own_attention(
    auditing: Callable[..., Auditing], mini: list[dict[str, Any]]
) -> None:
    """Where the engine runs transformers' module with its own attention, audits run it with transformers', and the
    engine goes on as before."""
    engine = auditing(path_kind="transformers", dtype="float32", exactness="numeric", drafters={})
    engine.audits.tolerance = Tolerance(1e-3, 1e-3, 1e-5, 1, 0, 1, 0, 1)
    stock = engine.driver.engine.runner.model.stock
    [bundle] = engine.answers(mini[:1], temperature=0.8)
    served_by = stock.config._attn_implementation
    assert engine.verdict(bundle) == "identical"
    assert stock.config._attn_implementation == served_by != "sdpa"
    [again] = engine.answers(mini[:1], temperature=0.8)
    assert again.output == bundle.output
