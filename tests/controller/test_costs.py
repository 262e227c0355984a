import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.engine.costs import REFRESH, CostTable, Curve, rising

POINTS = st.dictionaries(st.integers(1, 64), st.floats(0.001, 10.0), min_size=1, max_size=8)


def test_costs_run_straight_between_measured_widths() -> None:
    """Measured widths cost what was measured, those between their share of both neighbours."""
    table = CostTable({1: 4.0, 8: 4.7, 16: 6.3})
    assert [table.step(rows) for rows in (1, 8, 16)] == [4.0, 4.7, 6.3]
    assert table.step(12) == pytest.approx(5.5)


def test_steps_beyond_the_widest_are_split() -> None:
    """Forty rows at a widest of sixteen are two full steps and one of eight."""
    table = CostTable({1: 4.0, 8: 4.7, 16: 6.3})
    assert table.step(40) == pytest.approx(2 * 6.3 + 4.7)
    assert table.step(32) == pytest.approx(2 * 6.3)


def test_a_wider_step_is_never_cheaper() -> None:
    """A measurement that says so is averaged with its neighbours."""
    table = CostTable({1: 4.7, 8: 4.6, 16: 5.5})
    assert table.step(1) == table.step(8) == pytest.approx(4.65)


@given(points=POINTS, data=st.data())
@settings(max_examples=80, deadline=None)
def test_curves_rise_whatever_was_measured_and_observed(points: dict[int, float], data: st.DataObject) -> None:
    """No measurement and no observation makes more rows cheaper than fewer."""
    curve = Curve(points)
    for _ in range(data.draw(st.integers(0, 3)) * REFRESH):
        curve.correct(data.draw(st.integers(1, 80)), data.draw(st.floats(-0.3, 0.3)))
    costs = [curve.at(width) for width in range(1, 100)]
    assert costs == pytest.approx(sorted(costs))
    assert costs[0] > 0


@given(values=st.lists(st.floats(-5, 5), max_size=12))
def test_the_rising_sequence_keeps_the_mean(values: list[float]) -> None:
    """Pooling is the closest rising sequence: it keeps the weighted sum, and leaves rising ones alone."""
    out = rising(values, [1.0] * len(values))
    assert out == sorted(out)
    assert sum(out) == pytest.approx(sum(values), abs=1e-9)
    assert rising(out, [1.0] * len(out)) == out


def test_chains_are_interpolated_over_rows_and_length() -> None:
    """A chain between measured lengths and batch sizes costs between them; drafters without entry cost nothing."""
    table = CostTable({1: 4.0}, {"draft_model": {(1, 1): 1.0, (1, 8): 8.0, (9, 1): 2.0, (9, 8): 16.0}})
    assert table.chain("draft_model", 1, 4) == pytest.approx(4.0)
    assert table.chain("draft_model", 5, 4) == pytest.approx(6.0)
    assert table.chain("draft_model", 32, 8) == pytest.approx(16.0)
    assert table.chain("draft_model", 1, 12) == pytest.approx(12.0)
    assert table.chain("draft_model", 1, 0) == 0.0
    assert table.chain("ngram", 1, 8) == 0.0


def test_a_slower_machine_shows_as_drift_and_changes_no_ratio() -> None:
    """When everything takes half as long again, the drift says so and relative costs stay."""
    table = CostTable({1: 4.0, 8: 5.0}, {"draft_model": {(1, 1): 1.0, (1, 8): 8.0}})
    for i in range(400):
        rows = 1 + i % 8
        table.observe_step(rows, 1.5 * (4.0 + (rows - 1) / 7))
        table.observe_chain("draft_model", 1, 4, 1.5 * 4.0)
    assert table.drift == pytest.approx(1.5, rel=0.05)
    assert table.step(8) / table.step(1) == pytest.approx(1.25, rel=0.03)
    assert table.chain("draft_model", 1, 4) / table.step(1) == pytest.approx(1.0, rel=0.05)


def test_a_wrong_measurement_is_corrected() -> None:
    """A width that really costs more than was measured ends up near its true price, under noise."""
    table = CostTable({1: 4.0, 8: 4.2, 16: 4.4})
    true, rng = {1: 4.0, 8: 6.0, 16: 6.5}, random.Random(0)
    for _ in range(3000):
        rows = rng.choice([1, 8, 16])
        table.observe_step(rows, true[rows] * math.exp(rng.gauss(0, 0.1)))
    assert table.step(8) / table.step(1) == pytest.approx(1.5, rel=0.06)
    assert table.step(16) / table.step(1) == pytest.approx(1.625, rel=0.06)


def test_one_long_pause_means_little() -> None:
    """A step of a hundred times the usual length moves the table by a few percent at most."""
    table = CostTable({1: 4.0, 8: 5.0})
    for _ in range(REFRESH):
        table.observe_step(8, 5.0)
    table.observe_step(8, 500.0)
    for _ in range(REFRESH):
        table.observe_step(8, 5.0)
    assert table.step(8) == pytest.approx(5.0, rel=0.02)
    assert table.drift == pytest.approx(1.0, rel=0.02)


def test_a_drafter_can_come_and_go() -> None:
    """Costs of a drafter are set when it is measured and gone when it is dropped."""
    table = CostTable({1: 4.0})
    assert table.chain("eagle3", 1, 4) == 0.0
    table.set_chain("eagle3", {(1, 4): 2.0, (1, 8): 3.0})
    assert table.chain("eagle3", 1, 4) == 2.0
    table.drop_chain("eagle3")
    table.observe_chain("eagle3", 1, 4, 9.0)
    assert table.chain("eagle3", 1, 4) == 0.0


@pytest.mark.parametrize("points", [{}, {0: 1.0}, {1: 0.0}])
def test_a_table_without_sense_is_refused(points: dict[int, float]) -> None:
    """No widths, a width of zero, or a step that takes no time."""
    with pytest.raises(ValueError, match="widths"):
        CostTable(points)


def test_steps_with_trees_are_learnt_apart() -> None:
    """What trees cost more is a factor of its own, and leaves the cost of chains as it was."""
    table = CostTable({1: 4.0, 16: 6.0}, tree=1.2)
    assert table.tree == pytest.approx(1.2)
    for _ in range(600):
        table.observe_step(16, 12.0, tree=True)
        table.observe_step(16, 6.0)
    assert table.tree == pytest.approx(2.0, rel=0.05)
    assert table.step(16) == pytest.approx(6.0, rel=0.01)
