"""What may follow is a function of grammar and tokens alone, however they were reached."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from llguidance import LLParserLimits

from specproxy.errors import InvalidRequest
from specproxy.structured.grammars import Grammars, Matcher
from specproxy.structured.schemas import compile_schema
from specproxy.text.tokenizer import Tokenizer
from specproxy.vocabulary import SamplingParams
from tests.structured.conftest import EOS, VOCAB
from tests.support.prompts import HOUSE

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def start(grammars: Grammars, schema: dict[str, Any]) -> Matcher:
    """A matcher at the beginning of ``schema``."""
    params = SamplingParams(grammar=compile_schema(schema, "schema", strict=True).grammar)
    matcher = grammars.matcher(params)
    assert matcher is not None
    return matcher


def ids_of(mask: np.ndarray | None) -> list[int]:
    """The allowed ids."""
    assert mask is not None
    allowed: list[int] = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()
    return allowed


def random_answer(grammars: Grammars, seed: int) -> list[int]:
    """Tokens drawn evenly from what is allowed, up to an end or 60 of them."""
    rng, matcher, tokens = np.random.default_rng(seed), start(grammars, PERSON), []
    while len(tokens) < 60 and not set(tokens) & set(EOS):
        tokens.append(int(rng.choice(ids_of(matcher.allowed(())))))
        matcher.advance(tokens[-1:])
    return tokens


@pytest.mark.parametrize("seed", range(6))
def test_masks_do_not_depend_on_how_a_place_was_reached(grammars: Grammars, seed: int) -> None:
    """Along random paths, in random order, committed in random bursts and taken back: the mask of a fresh matcher."""
    rng, answer = np.random.default_rng(100 + seed), random_answer(grammars, seed)
    plain = start(grammars, PERSON)
    expected = []
    for token in answer:
        expected.append(ids_of(plain.allowed(())))
        plain.advance([token])
    matcher, at = start(grammars, PERSON), 0
    while at < len(answer):
        for depth in rng.permutation(min(9, len(answer) - at)).tolist():
            assert ids_of(matcher.allowed(answer[at : at + depth])) == expected[at + depth]
        matcher.allowed([*answer[at : at + 2], int(rng.integers(VOCAB)), 5])  # a draft that went wrong
        burst = int(rng.integers(1, 5))
        matcher.advance(answer[at : at + burst])
        if rng.random() < 0.3:
            matcher.rollback(min(burst, len(answer) - at))
            burst = 0
        at += burst
        matcher = copy.deepcopy(matcher) if rng.random() < 0.3 else matcher


def test_ends_are_allowed_where_the_grammar_is_complete(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Before its end no end-of-sequence token, behind it nothing else, and any of the model's."""
    matcher = start(grammars, PERSON)
    for token in tokenizer.encode('{"name": "Bo", "age": 7}', special=False):
        assert not set(ids_of(matcher.allowed(()))) & set(EOS)
        assert matcher.allows((), token)
        matcher.advance([token])
    assert sorted(ids_of(matcher.allowed(()))) == sorted(EOS)
    assert matcher.forced(8) == [EOS[0]]


def test_a_number_may_end_or_go_on(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """An answer that is complete and could be longer allows both."""
    matcher = start(grammars, {"type": "integer"})
    matcher.advance(tokenizer.encode("12", special=False))
    assert set(EOS) < set(ids_of(matcher.allowed(())))
    assert matcher.forced(8) == []


def test_special_tokens_are_no_text(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Inside a string every text may stand, and no special token."""
    matcher = start(grammars, {"type": "string"})
    matcher.advance(tokenizer.encode('"', special=False))
    assert not set(ids_of(matcher.allowed(()))) & set(tokenizer.special_ids)


def test_behind_the_end_and_behind_nonsense_nothing_is_masked_or_allowed(grammars: Grammars) -> None:
    """Drafts are cut there; that a fault commits nonsense must not break what follows."""
    matcher = start(grammars, PERSON)
    assert matcher.allowed([5, 5]) is None
    assert not matcher.allows([5, 5], 7)
    assert not matcher.allows((), -1)
    assert not matcher.allows((), VOCAB)
    matcher.advance([5, 6])
    assert matcher.allowed(()) is None
    assert matcher.forced(4) == []
    matcher.rollback(2)
    assert ids_of(matcher.allowed(())) == ids_of(start(grammars, PERSON).allowed(()))


def test_forced_tokens_are_legal_and_spell_what_must_come(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """A key that is the only one left, no more of it than was asked for."""
    matcher = start(
        grammars,
        {
            "type": "object",
            "properties": {"temperature_unit": {"type": "null"}},
            "required": ["temperature_unit"],
            "additionalProperties": False,
        },
    )
    matcher.advance(tokenizer.encode('{"', special=False))
    forced = matcher.forced(60)
    assert tokenizer.decode(forced).startswith("temperature_un")
    assert matcher.forced(1) == forced[:1]
    for at, token in enumerate(forced):
        assert matcher.allows(forced[:at], token)


def test_a_limit_that_is_reached_leaves_nothing(grammars: Grammars) -> None:
    """A grammar that grows too dear in the middle of an answer says so instead of letting anything through."""
    tight = Grammars(HOUSE / "tokenizer.json", VOCAB, EOS, LLParserLimits(step_max_items=1))
    matcher = start(tight, PERSON)
    assert ids_of(matcher.allowed(())) == []
    assert not matcher.allows((), 5)
    assert "cannot be followed" in matcher.fault


@pytest.mark.parametrize("name", ["min_tokens", "ignore_eos"])
def test_what_contradicts_a_grammar_is_refused(grammars: Grammars, name: str) -> None:
    """A grammar alone says where an answer ends."""
    grammar = compile_schema(PERSON, "schema", strict=True).grammar
    with pytest.raises(InvalidRequest, match="cannot be combined") as caught:
        grammars.matcher(SamplingParams(grammar=grammar, **{name: 1}))
    assert caught.value.param == name


def test_grammars_are_compiled_once(grammars: Grammars) -> None:
    """Equal ones share what was compiled; broken ones are the request's fault; no grammar is no matcher."""
    params = SamplingParams(grammar=json.dumps({"grammars": [{"json_schema": {"type": "null"}}]}))
    first, second = grammars.matcher(params), grammars.matcher(params)
    assert first is not None
    assert second is not None
    assert first._compiled is second._compiled
    with pytest.raises(InvalidRequest, match="cannot be compiled"):
        grammars.matcher(SamplingParams(grammar="start: nothing"))
    assert grammars.matcher(SamplingParams()) is None
