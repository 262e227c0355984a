"""What the studies of ``specproxy bench`` show: a table, the notes that belong to it, and what is being done."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from specproxy.bench.field import Grid
from specproxy.bench.session import Plan
from specproxy.cli.bench_setup import progress_bar


def study_method(plan: Plan) -> str:
    """How the numbers of a study were made."""
    return (
        f"{len(plan.records)} prompts, one at a time, {plan.repeats} repeat(s), at most {plan.max_tokens} tokens, the "
        "engine in this process; ratios: paired, geometric means over prompts, with 95 % bootstrap intervals of them"
    )


def print_grids(args: argparse.Namespace, console: Console, grids: Sequence[Grid], notes: Sequence[str]) -> None:
    """The tables, in Markdown where that was asked for, then the notes."""
    for grid in grids:
        if args.markdown:
            console.print(f"{grid.title}\n\n{grid.markdown()}\n", markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(grid.rich())
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def with_progress(console: Console, total: int, study: Callable[[Callable[[str], None]], Any]) -> Any:
    """``study`` with a bar that it moves by naming what it has done."""
    with progress_bar(console) as progress:
        task = progress.add_task("warming up", total=total)
        return study(lambda what: progress.update(task, advance=1, description=what))
