from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.drafters.base import DraftBatch, DraftContext
from specproxy.drafters.ngram import NgramDrafter, NgramOptions, load
from specproxy.errors import ConfigError

Make = Callable[..., Any]
TEXT = st.lists(st.integers(0, 4), max_size=60)


def drafter(**options: int) -> NgramDrafter:
    """One that wants two tokens to agree, unless told otherwise."""
    return NgramDrafter("ngram", NgramOptions(**{"min_n": 2, **options}))


def slow_match(tokens: list[int], min_n: int, max_n: int) -> tuple[int, int]:
    """(length, position after it) of the longest, most recent earlier occurrence of the text's end."""
    for n in range(min(max_n, len(tokens) - 1), min_n - 1, -1):
        for start in range(len(tokens) - n - 1, -1, -1):
            if tokens[start : start + n] == tokens[-n:]:
                return n, start + n
    return 0, -1


def test_a_copy_of_the_prompt_is_drafted_to_its_end(bench: Make) -> None:
    """Once the output repeats two tokens of the prompt, the rest of the prompt is proposed."""
    run = bench(drafter(), [1, 2, 3, 4, 5, 6, 7, 90])
    assert run.propose() == []
    run.commit([2, 3])
    assert run.propose(4) == [4, 5, 6, 7]


def test_the_longest_match_wins_and_then_the_most_recent(bench: Make) -> None:
    """Of two occurrences the one with more context is copied; of equals the later."""
    longer_first = [1, 2, 3, 50, 9, 2, 3, 60, 8]
    run = bench(drafter(), [*longer_first, 1, 2, 3])
    assert run.propose(1) == [50]
    run = bench(drafter(), [2, 3, 50, 2, 3, 60, 8, 2, 3])
    assert run.propose(1) == [60]


def test_a_long_copy_is_followed_past_a_later_lookalike(bench: Make) -> None:
    """After more than max_n agreeing tokens the copy stays with its source, whatever looks alike more recently."""
    source = list(range(10, 20))
    run = bench(drafter(max_n=3), [*source, 70, 17, 18, 19, 71, 99])
    run.commit(source)
    assert run.propose(1) == [70]


def test_a_periodic_text_is_continued_beyond_its_end(bench: Make) -> None:
    """A match that overlaps itself goes round again, so that repetition is drafted at full length."""
    run = bench(drafter(), [1, 2, 3, 1, 2, 3, 1, 2, 3])
    assert run.propose(7) == [1, 2, 3, 1, 2, 3, 1]


def test_a_short_match_near_the_end_is_not_stretched(bench: Make) -> None:
    """Two equal tokens five back are no sign of a period: the guess ends where the text ends."""
    run = bench(drafter(), [1, 2, 3, 4, 5, 1, 2])
    assert run.propose(8) == [3, 4, 5, 1, 2]


def test_confidence_grows_with_the_match(bench: Make) -> None:
    """The bucket rises as more tokens agree, and stays within the declared priors."""
    seen = []
    run = bench(drafter(min_n=1), [*range(10, 40), 99])
    for token in range(10, 30):
        run.commit([token])
        run.propose()
        seen.append(int(run.batch.bucket[0]))
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] == len(run.drafter.needs.prior) - 1


@given(prompt=TEXT, output=TEXT, data=st.data())
@settings(max_examples=150, deadline=None)
def test_state_depends_on_the_tokens_alone(
    bench: Make, prompt: list[int], output: list[int], data: st.DataObject
) -> None:
    """Any sequence of commits, with or without proposals between, leaves the state that a fresh start would build."""
    run = bench(drafter(), prompt)
    whole = list(output)
    while output:
        cut = data.draw(st.integers(1, len(output)))
        run.commit(output[:cut])
        output = output[cut:]
        if data.draw(st.booleans()):
            run.propose(data.draw(st.integers(0, 9)))
    again = bench(drafter(), prompt)
    again.commit(whole)
    assert asdict(run.row.state) == asdict(again.row.state)
    resumed = bench(drafter(), prompt)
    resumed.row.state = None
    resumed.tokens += whole
    resumed.drafter.prefill(DraftContext([resumed.row]))
    assert asdict(run.row.state) == asdict(resumed.row.state)


@given(tokens=st.lists(st.integers(0, 3), min_size=1, max_size=80), split=st.integers(0, 80), min_n=st.integers(1, 2))
@settings(max_examples=200, deadline=None)
def test_a_guess_exists_exactly_where_a_suffix_occurs_earlier(
    bench: Make, tokens: list[int], split: int, min_n: int
) -> None:
    """The index finds what a scan of the whole text finds: same length, and the same place up to max_n tokens."""
    split = min(split, len(tokens))
    run = bench(drafter(min_n=min_n, max_n=4), tokens[:split])
    run.commit(tokens[split:])
    length, place = slow_match(tokens, min_n, 4)
    guess = run.propose(1)
    state = run.row.state
    assert bool(guess) == (length > 0)
    if length:
        assert state.run >= length
        assert tokens[state.source - state.run : state.source] == tokens[len(tokens) - state.run :]
        if state.run == length < 4:
            assert state.source == place
        assert guess == [tokens[state.source]]


@given(source=st.lists(st.integers(0, 10**6), min_size=12, max_size=60, unique=True), start=st.integers(0, 8))
@settings(max_examples=80, deadline=None)
def test_an_output_that_copies_its_source_is_drafted_without_error(bench: Make, source: list[int], start: int) -> None:
    """From the third copied token on, every proposal is what follows in the source."""
    run = bench(drafter(), [*source, 10**7])
    run.commit(source[start : start + 2])
    done = start + 2
    while done < len(source) - 1:
        accepted = run.accept(source[done:])
        assert accepted == min(8, len(source) - done - 1)
        done += accepted + 1


def test_an_empty_row_budget_means_no_guess(bench: Make) -> None:
    """K = 0 proposes nothing, and an empty prompt is no error."""
    run = bench(drafter(), [1, 2, 1, 2])
    assert run.propose(0) == []
    run = bench(drafter(), [])
    assert run.propose() == []
    run.commit([5, 5, 5])
    assert run.propose(2) == [5, 5]


def test_a_batch_keeps_its_rows_apart(bench: Make) -> None:
    """Rows of one call are answered each from their own text, those without a guess with none."""
    ngram = drafter()
    runs = [bench(ngram, prompt) for prompt in ([1, 2, 3, 1, 2], [7, 8, 9], [4, 4, 4, 4])]
    out = DraftBatch.allocate(3, 8)
    out.n[:] = 5
    ngram.propose(DraftContext([run.row for run in runs]), out)
    assert out.n.tolist()[1] == 0
    assert out.tokens[0, 0] == 3
    assert out.tokens[2, :4].tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("options", "told"),
    [({"min_n": 0}, "min_n"), ({"min_n": 5, "max_n": 4}, "max_n 4"), ({"window": 3}, "window"), ({"max_k": 99}, "63")],
)
def test_wrong_options_are_named(options: dict[str, int], told: str, host: Any) -> None:
    """An option that is unknown or out of range is refused with its name."""
    with pytest.raises(ConfigError, match=told):
        load("ngram", options, host)
