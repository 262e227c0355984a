from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.alignment import Alignment
from specproxy.drafters.prediction import PredictionDrafter, PredictionOptions, load
from specproxy.errors import ConfigError


def prediction_usage(prediction: Sequence[int], output: Sequence[int]) -> tuple[int, int]:
    """(accepted, rejected) after the whole output."""
    alignment = Alignment(prediction)
    for token in output:
        alignment.feed(token)
    return alignment.accepted, alignment.rejected


Make = Callable[..., Any]
TEXT = st.lists(st.integers(0, 4), max_size=50)
CODE = list(range(100, 140))


def drafter() -> PredictionDrafter:
    """With default options."""
    return PredictionDrafter("prediction", PredictionOptions())


def test_the_first_guess_is_the_start_of_the_prediction(bench: Make) -> None:
    """Before any output the prediction's beginning is proposed, with full confidence."""
    run = bench(drafter(), [1, 2], prediction=CODE)
    assert run.propose(5) == CODE[:5]
    assert run.batch.bucket[0] == 2


def test_an_output_equal_to_the_prediction_is_drafted_without_error(bench: Make) -> None:
    """Every step accepts K tokens until the prediction ends."""
    run = bench(drafter(), [1, 2], prediction=CODE)
    done = 0
    while done < len(CODE):
        accepted = run.accept(CODE[done:])
        assert accepted == min(8, len(CODE) - done - 1)
        done += accepted + 1
    assert run.propose() == []
    assert prediction_usage(CODE, CODE) == (len(CODE), 0)


@pytest.mark.parametrize(
    ("changed", "steps", "accepted"),
    [
        pytest.param([*CODE[:10], 7, *CODE[11:]], 1, 39, id="one token replaced"),
        pytest.param([*CODE[:10], 7, 8, 9, *CODE[11:]], 3, 39, id="one token replaced by three"),
        pytest.param([*CODE[:10], *CODE[16:]], 1, 34, id="a piece left out"),
        pytest.param([*CODE[:10], 7, 8, *CODE[10:]], 3, 40, id="two tokens put in"),
        pytest.param([7, 8, *CODE], 3, 40, id="a preface"),
        pytest.param([*CODE[:10], *CODE[30:], *CODE[10:30]], 5, 40, id="two pieces exchanged"),
    ],
)
def test_an_edit_costs_few_plain_tokens(bench: Make, changed: list[int], steps: int, accepted: int) -> None:
    """After an edit the draft is in step again within a token or two; what stayed is counted as accepted."""
    run = bench(drafter(), [1, 2], prediction=CODE, k=63)
    rejected_steps, done = 0, 0
    while done < len(changed) - 1:
        done += run.accept(changed[done:]) + 1
        rejected_steps += 1
    assert rejected_steps <= steps + 2
    assert prediction_usage(CODE, changed) == (accepted, len(CODE) - accepted)


def test_repeated_rows_are_followed_in_order(bench: Make) -> None:
    """With a value changed in every row of a table, the draft does not wander off to rows that look alike."""
    rows = [[1, 2, 100 + i, 3, 4, 10, 5, 6, 7, 8] for i in range(12)]
    prediction = [token for row in rows for token in row]
    output = [token for row in rows for token in [*row[:5], 11, *row[6:]]]
    run = bench(drafter(), [9], prediction=prediction, k=16)
    steps, done = 0, 0
    while done < len(output):
        done += run.accept(output[done:]) + 1
        steps += 1
    assert steps <= 14
    assert prediction_usage(prediction, output) == (108, 12)


def test_a_value_that_also_stands_elsewhere_does_not_lead_astray(bench: Make) -> None:
    """After a long agreement a changed value is taken for a replacement, though other rows hold the same value."""
    rows = [[1, 2, 100 + i, 3, 4, 10 if i % 3 else 20, 30, 31, 32, 33] for i in range(15)]
    prediction = [token for row in rows for token in row]
    output = [token for row in rows for token in [*row[:5], 10, *row[6:]]]
    run = bench(drafter(), [9], prediction=prediction, k=16)
    steps, done = 0, 0
    while done < len(output):
        done += run.accept(output[done:]) + 1
        steps += 1
    assert steps <= 13
    assert prediction_usage(prediction, output)[0] >= 130


@pytest.mark.parametrize(
    ("prediction", "output", "usage"),
    [
        ([], [1, 2], (0, 0)),
        ([1, 2, 3], [], (0, 3)),
        ([5], [5], (1, 0)),
        ([1, 2, 3], [9, 9, 9, 9], (0, 3)),
        ([1, 2, 3, 4], [1, 2], (2, 2)),
        ([1, 2, 3, 4], [1, 2, 3, 4] * 3, (4, 0)),
    ],
)
def test_usage_counts_each_prediction_token_once(prediction: list[int], output: list[int], usage: object) -> None:
    """Accepted and rejected add up to the prediction, also where the output repeats it or stops early."""
    assert prediction_usage(prediction, output) == usage


@given(prediction=TEXT, output=TEXT)
@settings(max_examples=300, deadline=None)
def test_usage_is_bounded_by_both_texts(prediction: list[int], output: list[int]) -> None:
    """No prediction token counts twice and no output token stands for two; the cursor stays inside the prediction."""
    alignment = Alignment(prediction)
    for token in output:
        alignment.feed(token)
        assert 0 <= alignment.cursor <= len(prediction)
        assert 0 <= alignment.confidence <= 2
    accepted, rejected = prediction_usage(prediction, output)
    assert accepted == alignment.accepted <= min(len(prediction), len(output))
    assert accepted + rejected == len(prediction)
    assert accepted <= sum(min(prediction.count(token), output.count(token)) for token in set(prediction))


@given(prediction=TEXT, output=TEXT, data=st.data())
@settings(max_examples=150, deadline=None)
def test_alignment_does_not_depend_on_the_schedule(
    bench: Make, prediction: list[int], output: list[int], data: st.DataObject
) -> None:
    """Whatever the commits and proposals, drafter state and usage equal those of one pass over the output."""
    run = bench(drafter(), [1], prediction=prediction)
    left = list(output)
    while left:
        cut = data.draw(st.integers(1, len(left)))
        run.commit(left[:cut])
        left = left[cut:]
        run.propose(data.draw(st.integers(0, 9)))
    once = Alignment(prediction)
    for token in output:
        once.feed(token)
    guess = run.propose(63)
    assert guess == prediction[once.cursor :]
    if prediction:
        assert run.row.state.accepted == prediction_usage(prediction, output)[0]


@given(
    unique=st.lists(st.integers(0, 10**6), min_size=20, max_size=60, unique=True),
    cut=st.integers(1, 15),
    length=st.integers(1, 4),
)
@settings(max_examples=80, deadline=None)
def test_after_a_cut_the_rest_is_drafted_exactly(bench: Make, unique: list[int], cut: int, length: int) -> None:
    """A piece left out costs one token: from then on proposals equal the true continuation."""
    output = unique[:cut] + unique[cut + length :]
    run = bench(drafter(), [1], prediction=unique)
    run.commit(output[: cut + 1])
    assert run.propose(63) == output[cut + 1 :]


def test_a_row_without_prediction_has_no_guess(bench: Make) -> None:
    """Without a prediction the drafter stays silent."""
    run = bench(drafter(), [1, 2, 1, 2])
    assert run.propose() == []


def test_wrong_options_are_named(host: Any) -> None:
    """An option that is unknown or out of range is refused with its name."""
    with pytest.raises(ConfigError, match="min_n"):
        load("p", {"min_n": 2}, host)
    with pytest.raises(ConfigError, match="max_k"):
        load("p", {"max_k": 0}, host)
