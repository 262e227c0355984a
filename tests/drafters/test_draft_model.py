"""What the draft model runs; that it drafts well is for the bench, that it changes no answer for tests/identity."""

from __future__ import annotations

from specproxy.drafters.draft_model import few_widths


def test_steps_have_few_widths() -> None:
    """Every row fits, at most a quarter is padding, small steps have none, and there are four widths an octave."""
    for rows in range(1, 8193):
        assert rows <= few_widths(rows) <= 1.25 * rows
    assert [few_widths(rows) for rows in range(1, 9)] == list(range(1, 9))
    assert len({few_widths(rows) for rows in range(1, 8193)}) == 8 + 4 * 10
