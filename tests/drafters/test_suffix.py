"""Suffix decoding: earlier answers of the route as drafts, and nobody else's."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.drafters.base import DraftBatch, DraftContext, DraftRow
from specproxy.drafters.suffix import PLACES, SuffixDrafter, SuffixOptions, load
from specproxy.errors import ConfigError

PROMPT = [90, 91, 92]


def drafter(**options: int) -> SuffixDrafter:
    """One that wants two tokens to agree, unless told otherwise."""
    return SuffixDrafter("suffix", SuffixOptions(**{"min_match": 2, **options}))


def row(name: str, output: Sequence[int] = (), group: str = "g", k: int = 8) -> DraftRow:
    """A sequence behind a prompt that all share."""
    sampler: Any = SimpleNamespace()
    return DraftRow(name, [*PROMPT, *output], len(PROMPT), k, group, sampler)


def propose(source: SuffixDrafter, one: DraftRow) -> list[int]:
    """Its guess."""
    batch = DraftBatch.allocate(1, 64)
    source.propose(DraftContext([one]), batch)
    return [int(token) for token in batch.tokens[0, : batch.n[0]]]


def answered(source: SuffixDrafter, name: str, output: Sequence[int], group: str = "g") -> None:
    """A whole answer, committed in two parts."""
    one = row(name, group=group)
    source.prefill(DraftContext([one]))
    for part in (output[:3], output[3:]):
        one.tokens += part  # type: ignore[operator]
        source.commit(DraftContext([one]))
    source.release(name)


def test_an_answer_is_drafted_from_an_earlier_one() -> None:
    """From its first token on: the end of the prompt counts as what an answer begins with."""
    source = drafter()
    answered(source, "a", [1, 2, 3, 4, 5, 6])
    assert propose(source, row("b")) == [1, 2, 3, 4, 5, 6]
    assert propose(source, row("c", [70, 3, 4])) == [5, 6]


def test_other_groups_see_nothing() -> None:
    """Routes and tenants are apart."""
    source = drafter()
    answered(source, "a", [1, 2, 3, 4, 5, 6], group="one")
    assert propose(source, row("b", [1, 2, 3], group="two")) == []


def test_a_match_of_n_tokens_supports_factor_times_n() -> None:
    """A short match drafts little, a long one much."""
    source = drafter(factor=1)
    answered(source, "a", list(range(1, 30)))
    assert propose(source, row("b", [70, 5, 6])) == [7, 8]
    assert propose(source, row("c", [70, 5, 6, 7, 8, 9])) == [10, 11, 12, 13, 14]


def test_the_longest_match_wins_then_the_majority_then_the_latest() -> None:
    """A long match outweighs two short ones; of short ones two outweigh one, and of two the later one does."""
    source = drafter()
    answered(source, "a", [9, 8, 7, 6, 5, 10])
    answered(source, "b", [70, 6, 5, 20])
    answered(source, "c", [71, 6, 5, 20])
    answered(source, "d", [72, 6, 5, 30])
    assert propose(source, row("e", [9, 8, 7, 6, 5]))[0] == 10
    assert propose(source, row("f", [73, 6, 5]))[0] == 20
    answered(source, "g", [74, 6, 5, 30])
    assert propose(source, row("h", [75, 6, 5]))[0] == 30


def test_confidence_grows_with_the_match() -> None:
    """The bucket rises with the tokens that agree, and stays within the declared priors."""
    source = drafter()
    text = list(range(1, 60))
    answered(source, "a", text)
    batch = DraftBatch.allocate(1, 64)
    seen = []
    for n in (2, 6, 10, 20, 40):
        source.propose(DraftContext([row(f"b{n}", [70, *text[5 : 5 + n]])]), batch)
        seen.append(int(batch.bucket[0]))
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] == len(source.needs.prior) - 1


def test_a_preempted_sequence_is_not_counted_twice() -> None:
    """It begins again under its name, with tokens that are known."""
    source = drafter()
    one = row("a", [1, 2, 3])
    source.prefill(DraftContext([one]))
    source.release("a")
    before = source.num_tokens
    one.state = None
    source.prefill(DraftContext([one]))
    assert source.num_tokens == before


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("xy"), st.lists(st.integers(0, 3), min_size=1, max_size=25)), max_size=14))
def test_memory_is_bounded_and_only_the_living_are_found(answers: list[tuple[str, list[int]]]) -> None:
    """What is kept is the latest answers whole, and the index holds their runs, the latest places of each, alone."""
    source = drafter(max_tokens=60)
    for i, (group, output) in enumerate(answers):
        answered(source, str(i), output, group)
    kept = list(source._answers.items())
    assert [name for name, _ in kept] == [str(i) for i in range(len(answers) - len(kept), len(answers))]
    assert source.num_tokens == sum(len(a.tokens) for _, a in kept)
    assert source.num_tokens <= 60 or len(kept) == 1
    expected: dict[tuple[str, tuple[int, ...]], list[tuple[int, int]]] = {}
    for _, a in kept:
        for end in range(2, len(a.tokens)):
            expected.setdefault((a.group, tuple(a.tokens[end - 2 : end])), []).append((id(a), end))
    found = {
        (group, run): [(id(place.answer), place.at) for place in places]
        for group, index in source._index.items()
        for run, places in index.items()
    }
    assert found.keys() <= expected.keys()
    for key, places in found.items():
        assert set(places) <= set(expected[key][-PLACES:])
        assert places[-1] == expected[key][-1]


def test_options_are_checked(host: Any) -> None:
    """Each with the drafter's name and what was expected."""
    for options, word in (({"min_match": 0}, "min_match"), ({"factor": 0}, "factor"), ({"window": 3}, "window")):
        with pytest.raises(ConfigError, match=word):
            load("s", options, host)
