"""Hard mismatches: zero tolerated, or a sequential test."""

from __future__ import annotations

import pytest

from specproxy.gate.mismatches import Mismatches, MismatchTest

BITWISE, NUMERIC = MismatchTest(), MismatchTest(zero=False)


def after(test: MismatchTest, answers: str) -> str:
    """The verdict after these answers: ``.`` clean, ``x`` a hard mismatch."""
    seen = Mismatches()
    for answer in answers:
        seen.add(test, hard=answer == "x")
    return seen.verdict


@pytest.mark.parametrize(
    ("test", "clean", "per_mismatch"),
    [
        (BITWISE, 299, None),
        (NUMERIC, 326, 255),
        (MismatchTest(False, 0.005, 0.02), 194, 92),
        (MismatchTest(False, 0.0005, 0.005), 653, 511),
    ],
)
def test_the_known_numbers_come_out(test: MismatchTest, clean: int, per_mismatch: int | None) -> None:
    """Samples needed follow from rates and error probabilities alone."""
    assert test.clean_needed == clean
    assert per_mismatch is None or test.clean_per_mismatch == per_mismatch


def test_bitwise_passes_at_the_last_clean_answer_and_no_sooner() -> None:
    """298 clean answers are open, 299 pass."""
    assert (after(BITWISE, "." * 298), after(BITWISE, "." * 299)) == ("open", "pass")


@pytest.mark.parametrize("answers", ["x", "." * 150 + "x" + "." * 400, "." * 299 + "x"])
def test_bitwise_one_mismatch_rejects_for_good(answers: str) -> None:
    """Whenever it comes, and whatever follows."""
    assert after(BITWISE, answers) == "fail"


def test_numeric_passes_at_326_and_one_mismatch_costs_255_more() -> None:
    """The count of clean answers at which the sequential test accepts."""
    assert (after(NUMERIC, "." * 325), after(NUMERIC, "." * 326)) == ("open", "pass")
    assert after(NUMERIC, "x" + "." * (326 + 254 - 1)) == "open"
    assert after(NUMERIC, "x" + "." * (326 + 255)) == "pass"


def test_numeric_rejects_two_early_mismatches() -> None:
    """One is not proof, two in a row are."""
    assert (after(NUMERIC, "x"), after(NUMERIC, "xx")) == ("open", "fail")


def test_numeric_notices_a_fault_that_begins_after_acceptance() -> None:
    """Thousands of clean answers before do not buy a fault off."""
    assert after(NUMERIC, "." * 20_000 + "x..x..x") == "fail"


def test_nothing_audited_is_not_a_pass() -> None:
    """Without answers the verdict is that nothing was seen."""
    assert Mismatches().verdict == "absent"


def test_explained_ties_are_clean_and_counted() -> None:
    """A near-tie is no mismatch, and a mismatch no near-tie."""
    seen = Mismatches()
    seen.add(NUMERIC, hard=False, explained=True)
    seen.add(NUMERIC, hard=True, explained=True)
    assert (seen.clean, seen.hard, seen.explained) == (1, 1, 1)
