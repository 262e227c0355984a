"""A grammar's mask is an edit of logits like the others: in the sampler, in drafts, on the host and on a device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLParserLimits

from specproxy.errors import BadLogits, InvalidRequest
from specproxy.sampling import sampler as sampling
from specproxy.sampling.sampler import Row, Sampler, propose_rows, sample_rows
from specproxy.structured.grammars import LIMITS, Grammars
from specproxy.vocabulary import SamplingParams
from tests.support.prompts import HOUSE

GRAMMAR = '{"grammars": [{"json_schema": {"type": "array", "items": {"enum": ["left", "right"]}}}]}'
VOCAB, EOS = 8192, (2, 0)
PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 0.9, "top_p": 0.9, "frequency_penalty": 0.5, "repetition_penalty": 1.3, "logit_bias": {7: 50.0}},
]


def constrained(seed: int, limits: LLParserLimits = LIMITS, **params: Any) -> Sampler:
    """A sampler at the beginning of a list of words."""
    given = SamplingParams(grammar=GRAMMAR, **params)
    grammar = Grammars(HOUSE / "tokenizer.json", VOCAB, EOS, limits).matcher(given)
    return Sampler(given, seed, 0, [1, 9], VOCAB, EOS, torch.device("cpu"), grammar)


def walk(sampler: Sampler, length: int) -> list[Row]:
    """Rows of a draft that is what the sampler itself draws from noise."""
    rows, path = [], []
    for depth in range(length):
        rows.append(Row(sampler, list(path), 2 + depth))
        path.append(sample_rows(noise(1, depth), rows[-1:])[0])
        if path[-1] in EOS:
            break
    return rows


def noise(count: int, seed: int) -> torch.Tensor:
    """Logits [count, VOCAB + 3]."""
    return torch.randn(count, VOCAB + 3, generator=torch.Generator().manual_seed(seed)) * 4


@pytest.mark.parametrize("params", PARAMS)
def test_every_way_to_sample_keeps_to_the_grammar(params: dict[str, Any]) -> None:
    """The token, its alternatives and the distribution are legal at every node of a path, on the host and by the
    reference for other devices, which agree."""
    rows = walk(constrained(5, **params), 12)
    assert len(rows) > 3
    logits = noise(len(rows), 77)
    found = sampling._winners(logits, rows, 2)
    there = sampling._winners_on_device(sampling._float_rows(logits, rows), rows, 2)
    assert [best.ids for best in found] == [best.ids for best in there]
    for row, tokens, x in zip(rows, propose_rows(logits, rows, 3).tokens, logits, strict=True):
        assert all(row.sampler.allows(row.path, token) for token in tokens)
        chances = row.sampler.distribution(x, row.path)
        assert all(row.sampler.allows(row.path, token) for token in np.flatnonzero(chances).tolist())


def test_a_path_and_its_commitment_give_the_same_rows() -> None:
    """Drafted or committed in any bursts, forked or rolled back, the logits are edited alike."""
    rows = walk(constrained(3, temperature=0.8, presence_penalty=0.5), 10)
    x = noise(1, 1)[0, :VOCAB].numpy()
    committed = constrained(3, temperature=0.8, presence_penalty=0.5)
    for before, row in zip([rows[0], *rows], rows, strict=False):
        committed.advance(row.path[len(before.path) :])
        forked = committed.fork()
        forked.advance([5, 6])
        forked.rollback(2)
        expected = row.sampler.process(x, row.path)
        assert np.array_equal(committed.process(x, ()), expected)
        assert np.array_equal(forked.process(x, ()), expected)


def test_where_every_allowed_logit_is_minus_infinity_the_lowest_allowed_wins() -> None:
    """The mask decides which, as with every other mask."""
    sampler = constrained(1, temperature=0.0)
    [token] = sample_rows(torch.full((1, VOCAB), -math.inf), [Row(sampler, (), 2)])
    assert sampler.allows((), token)
    assert not any(sampler.allows((), lower) for lower in range(token))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_grammar_that_fails_fails_its_own_row(temperature: float) -> None:
    """Nothing is allowed, so nothing is sampled, and the others' tokens are what they were."""
    broken = constrained(1, LLParserLimits(step_max_items=1), temperature=temperature)
    fine = constrained(2, temperature=temperature)
    with pytest.raises(BadLogits) as caught:
        sample_rows(noise(2, 3), [Row(fine, (), 2), Row(broken, (), 2)])
    assert caught.value.rows == [1]
    assert broken.fault
    assert not fine.fault


def test_a_grammar_is_never_left_out_by_mistake() -> None:
    """Parameters with a grammar and a sampler without one do not go together."""
    with pytest.raises(InvalidRequest, match="nothing here follows it"):
        Sampler(SamplingParams(grammar=GRAMMAR), 1, 0, [1], VOCAB, EOS, torch.device("cpu"))


def test_a_row_with_a_grammar_is_an_edited_one() -> None:
    """Rounds and the argmax of raw logits are for rows without."""
    sampler = constrained(1, temperature=0.0)
    assert (sampler.edits, sampler.plain_greedy, sampler.needs_history, sampler.constrained) == (
        True,
        False,
        True,
        True,
    )
