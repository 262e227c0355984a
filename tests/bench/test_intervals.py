"""The time between steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from specproxy.bench.client import Answer
from specproxy.bench.intervals import Heard, Paces, intervals_table, pace_of


def heard(*intervals: float, tokens: int = 6) -> Heard:
    """An answer of three steps."""
    return Heard(Answer(tokens=tokens, token_ids=list(range(tokens)), steps=3, drafted=6), list(intervals))


def test_a_pace_is_paired_with_plain_decoding_of_the_same_prompt() -> None:
    """Two prompts at 1.5 and 6 times their plain interval: three times in the geometric mean."""
    plain = [heard(0.001, 0.001), heard(0.002, 0.002)]
    pace = pace_of("mtp;k=5", [heard(0.0015, 0.0015), heard(0.012, 0.012, tokens=5)], plain)
    assert pace.ratio is not None
    assert pace.ratio.mean == pytest.approx(3.0)
    assert (pace.intervals, pace.drafted_per_step, pace.differing) == (4, 2.0, 1)
    assert pace.tokens_per_step == pytest.approx(11 / 6)


def test_answers_too_short_for_an_interval_do_not_count() -> None:
    """Nothing to pair is a dash, not an error."""
    pace = pace_of("mtp", [heard()], [heard(0.001)])
    (row,) = intervals_table(Paces([pace], {})).rows
    assert row[1] == "0"
    assert row[7] == "-"


@pytest.mark.timeout(300)
def test_the_command_times_steps(run_bench: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    """Plain decoding and drafts of a fixed length: intervals of both, and the same answers."""
    small = ("--limit", "1", "--categories", "edit,code", "--max-tokens", "16", "--json", "--markdown")
    code, report, shown = run_bench("--intervals", "--arms", "suffix;k=4", *small)
    assert code == 0, shown
    plain, drafted = report["paces"]
    assert (plain["arm"], plain["tokens_per_step"], plain["ratio"]) == ("off", 1.0, None)
    assert plain["intervals"] > drafted["intervals"] > 0
    assert drafted["differing"] == 0
    assert drafted["ratio"]["units"] >= 1
    assert "| suffix;k=4 |" in shown
