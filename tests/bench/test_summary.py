"""What is made of the measurements."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console

from specproxy.bench.arms import parse_arms
from specproxy.bench.report import faults, print_report, to_json
from specproxy.bench.runner import Measured
from specproxy.bench.summary import add_memory, baseline_of, conditional, log_ratios, summarise
from specproxy.vocabulary import DraftCounts, DrafterInfo

Make = Callable[..., Measured]
ARMS = parse_arms(["auto"], numeric=True)


def test_ratios_are_paired_by_prompt_and_averaged_over_repeats(make_measured: Make) -> None:
    """One log ratio per prompt, however often it was asked."""
    results = [
        make_measured(arm, n, s, repeat=r) for arm, s in (("off", 2.0), ("auto", 1.0)) for n in (0, 1) for r in (0, 1)
    ]
    assert log_ratios(results, "auto", "off") == pytest.approx([0.6931, 0.6931], abs=1e-4)


def test_failed_and_unpaired_prompts_are_left_out(make_measured: Make) -> None:
    """A prompt that one arm could not answer says nothing about the ratio."""
    results = [
        make_measured("off", 0, 2.0),
        make_measured("auto", 0, 1.0, error="500: broken"),
        make_measured("off", 1, 2.0),
        make_measured("auto", 2, 1.0),
    ]
    assert log_ratios(results, "auto", "off") == []


def test_the_baseline_is_the_faster_plain_arm(make_measured: Make) -> None:
    """Numeric mode counts as off where it is faster, bitwise where it is not."""
    fast = [make_measured("off", 0, 2.0), make_measured("off-numeric", 0, 1.9)]
    slow = [make_measured("off", 0, 2.0), make_measured("off-numeric", 0, 2.1)]
    assert baseline_of(fast, ARMS) == "off-numeric"
    assert baseline_of(slow, ARMS) == "off"
    assert baseline_of(fast[:1], ARMS) == "off"


def test_a_category_reports_speed_length_and_acceptance(make_measured: Make) -> None:
    """Tokens over time, tokens per step and accepted over drafted, as the server counted them."""
    results = [
        make_measured("off", 0, 2.0, tokens=20, steps=20),
        make_measured("auto", 0, 1.0, tokens=20, steps=5, drafted=30, accepted=15),
    ]
    (summary,) = summarise(results, parse_arms(["auto"], numeric=False))
    off, auto = summary.arms
    assert (off.tokens_per_s, auto.tokens_per_s) == (10, 20)
    assert (off.accepted_length, auto.accepted_length) == (1, 4)
    assert (off.acceptance, auto.acceptance) == (None, 0.5)
    assert auto.ratio is not None
    assert auto.ratio.mean == pytest.approx(2)


@pytest.mark.parametrize(
    ("answer", "difference"),
    [
        ({"token_ids": [0, 1, 7, *range(3, 10)]}, "token 2 is 7, plain says 2"),
        ({"token_ids": [0, 1]}, "2 tokens, plain has 10"),
        ({"finish_reason": "length"}, "finish_reason length, plain says stop"),
        ({"text": "other"}, "same token ids, other text"),
    ],
)
def test_an_answer_that_differs_is_found_and_shown(
    make_measured: Make, answer: dict[str, object], difference: str
) -> None:
    """Token ids, finish reason and text are all compared, and the first difference is named with its prompt."""
    results = [make_measured("off", 0, 1.0), make_measured("auto", 0, 1.0, **answer)]
    summaries = summarise(results, parse_arms(["auto"], numeric=False))
    assert summaries[0].arms[1].identical == 0
    assert faults(summaries) == [f"json, auto: 1 answers differ from plain: json-0: {difference}"]


def test_equal_answers_are_no_fault(make_measured: Make) -> None:
    """Where every arm says the same there is nothing to report."""
    results = [make_measured("off", 0, 1.0), make_measured("auto", 0, 1.0)]
    assert faults(summarise(results, parse_arms(["auto"], numeric=False))) == []


def test_numeric_arms_may_differ(make_measured: Make) -> None:
    """Another last bit of numeric mode is shown, but is no fault; nor is it where the server promises nothing."""
    results = [make_measured(arm, 0, 1.0, text=arm) for arm in ("off", "off-numeric", "auto")]
    assert [fault.split(":")[0] for fault in faults(summarise(results, ARMS))] == ["json, auto"]
    assert faults(summarise(results, ARMS, exact=False)) == []


def test_failed_requests_are_a_fault(make_measured: Make) -> None:
    """A refused request is counted with its reason, and its answer is not compared."""
    results = [make_measured("off", 0, 1.0), make_measured("auto", 0, 1.0, error="400: no such drafter")]
    summaries = summarise(results, parse_arms(["auto"], numeric=False))
    assert summaries[0].arms[1].compared == 0
    assert faults(summaries) == ["json, auto: 1 of 1 requests failed: 400: no such drafter"]


def test_several_categories_end_with_a_row_over_all(make_measured: Make) -> None:
    """The last summary pools the prompts of all categories."""
    results = [
        make_measured(arm, n, 1.0, category=c) for arm in ("off", "auto") for n, c in enumerate(("json", "edit"))
    ]
    summaries = summarise(results, parse_arms(["auto"], numeric=False))
    assert [(s.category, s.prompts) for s in summaries] == [("json", 1), ("edit", 1), ("all", 2)]


def test_the_table_shows_arms_ratios_and_identity(make_measured: Make) -> None:
    """A person sees each arm with its ratio, and NO where an answer differs."""
    results = [
        make_measured(arm, n, seconds, finish_reason=reason)
        for arm, seconds, reason in (("off", 2.0, "stop"), ("auto", 1.0, "length"))
        for n in range(2)
    ]
    out = io.StringIO()
    print_report(Console(file=out, width=160), summarise(results, parse_arms(["auto"], numeric=False)), ["a note"])
    text = out.getvalue()
    assert "2.00x" in text
    assert "NO 0/2" in text
    assert "a note" in text


def test_the_json_report_is_one_line(make_measured: Make) -> None:
    """A program gets every category and arm on a single line, an interval without an end as null."""
    summaries = summarise([make_measured("off", 0, 2.0), make_measured("auto", 0, 1.0)], ARMS)
    line = to_json(summaries, {"machine": {"cores": 2}})
    assert "\n" not in line
    report = json.loads(line)
    assert report["machine"] == {"cores": 2}
    assert report["categories"][0]["arms"][1]["ratio"]["high"] is None


def test_acceptance_by_position_counts_what_was_tried() -> None:
    """A position is tried where those before it were accepted and the draft went on; behind that nothing is known."""
    counts = DraftCounts("mtp", steps=4, drafted=12, accepted=5, drafted_at=[4, 4, 4], accepted_at=[3, 2])
    assert conditional([counts]) == [0.75, 2 / 3, 0.0, None, None, None, None, None]
    short = DraftCounts("mtp", steps=2, drafted=2, accepted=2, drafted_at=[2], accepted_at=[2])
    assert conditional([counts, short])[:2] == [5 / 6, 2 / 3]
    assert conditional([]) == [None] * 8


def test_the_memory_of_an_arm_is_its_drafters(make_measured: Make) -> None:
    """An arm that names a drafter shows what that holds, whatever K it asks for; the others show nothing."""
    arms = parse_arms(["mtp;k=3", "auto"], numeric=False)
    summaries = summarise([make_measured(arm.name, 0, 1.0) for arm in arms], arms)
    add_memory(summaries, arms, [DrafterInfo("mtp", "mtp", 8, None, "f", 1000, 20)])
    held = {arm.arm: (arm.weight_bytes, arm.kv_bytes) for arm in summaries[0].arms}
    assert held == {"off": (None, None), "mtp;k=3": (1000, 20), "auto": (None, None)}
