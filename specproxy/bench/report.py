"""What a person reads (tables) and what a program reads (one line of JSON)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specproxy.bench.arms import OFF
from specproxy.bench.field import methods_by_category, methods_overall
from specproxy.bench.stats import Ratio
from specproxy.bench.summary import ArmSummary, CategorySummary


def print_report(console: Console, summaries: Sequence[CategorySummary], notes: Sequence[str]) -> None:
    """One table of all categories and arms, one of the methods, then the notes that belong to the numbers."""
    table = Table(title="specproxy bench", title_justify="left")
    table.add_column("category", no_wrap=True)
    table.add_column("arm", no_wrap=True)
    for name in ("tok/s", "ratio [95 %]", "p10-p90", "TTFT p50, p95", "len", "accept", "identical"):
        table.add_column(name, justify="right", no_wrap=True)
    for summary in summaries:
        for row, arm in enumerate(summary.arms):
            label = f"{summary.category} ({summary.prompts})" if row == 0 else ""
            table.add_row(label, escape(arm.arm), *_cells(arm), end_section=row == len(summary.arms) - 1)
    console.print(table)
    overall = methods_overall(summaries)
    if overall.rows:
        console.print(overall.rich())
    if len(summaries) > 1:
        console.print(methods_by_category(summaries).rich())
    for note in [*notes, *faults(summaries)]:
        console.print(escape(note), highlight=False, soft_wrap=True)


def markdown(summaries: Sequence[CategorySummary], notes: Sequence[str]) -> str:
    """The tables of the field for a document, with the notes that belong to them."""
    grids = [methods_by_category(summaries), methods_overall(summaries)]
    parts = [f"{grid.title}\n\n{grid.markdown()}" for grid in grids if grid.rows]
    return "\n\n".join([*parts, *notes, *faults(summaries)])


def to_json(summaries: Sequence[CategorySummary], facts: dict[str, Any]) -> str:
    """The whole report as one line; intervals without an end are null."""
    return msgspec.json.encode({**facts, "categories": summaries}).decode()


def faults(summaries: Sequence[CategorySummary]) -> list[str]:
    """Every category and arm with failed requests, or with answers that differ from plain though they must not."""
    lines = []
    for summary in summaries:
        for arm in summary.arms:
            who = f"{summary.category}, {arm.arm}"
            if arm.failed:
                lines.append(f"{who}: {arm.failed} of {arm.requests} requests failed: {arm.error}")
            if arm.promised and arm.identical < arm.compared:
                lines.append(f"{who}: {arm.compared - arm.identical} answers differ from plain: {arm.first_difference}")
    return lines


def _cells(arm: ArmSummary) -> list[str]:
    identical = "-"
    if arm.arm != OFF and arm.compared:
        verdict = "yes " if arm.identical == arm.compared else "NO " if arm.promised else ""
        identical = f"{verdict}{arm.identical}/{arm.compared}"
    ttft = "-"
    if arm.ttft_p50_ms is not None and arm.ttft_p95_ms is not None:
        ttft = f"{arm.ttft_p50_ms:.0f}, {arm.ttft_p95_ms:.0f} ms"
    return [
        f"{arm.tokens_per_s:.1f}",
        *_ratio_cells(arm.ratio),
        ttft,
        "-" if arm.accepted_length is None else f"{arm.accepted_length:.2f}",
        "-" if arm.acceptance is None else f"{arm.acceptance:.0%}",
        identical,
    ]


def _ratio_cells(ratio: Ratio | None) -> tuple[str, str]:
    if ratio is None:
        return ("-", "-")
    if ratio.units == 1:
        return (f"{ratio.mean:.2f}x", "one pair")
    return (escape(f"{ratio.mean:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"), f"{ratio.p10:.2f}-{ratio.p90:.2f}")
