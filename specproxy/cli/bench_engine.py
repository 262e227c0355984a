"""The studies of ``specproxy bench`` that run the engine in this process: which one is asked for, and those of drafting
(overhead, sweep, coupling). They import torch when they run."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from specproxy.bench.arms import parse_arm
from specproxy.bench.plot import check_can_draw, draw
from specproxy.bench.report import faults
from specproxy.bench.session import Plan, machine_notes, own_servers
from specproxy.bench.summary import CategorySummary
from specproxy.cli import bench_device
from specproxy.cli.bench_setup import names, progress_bar, scaled
from specproxy.cli.bench_show import print_grids, study_method, with_progress
from specproxy.config.schema import StartConfig
from specproxy.errors import StartError

if TYPE_CHECKING:
    from specproxy.bench.overhead import Overhead

OVERHEAD_CONCURRENCY = 8
"""Requests at a time of the overhead measurement's second half."""


def run_study(
    args: argparse.Namespace, plan: Plan, config: StartConfig, console: Console, progress_console: Console
) -> int:
    """The study that ``args`` asks for. 0: all answers came and equal plain decoding; 1: some did not."""
    return STUDIES[study_of(args)](args, plan, config, console, progress_console)


def study_of(args: argparse.Namespace) -> str:
    """The name of the study that ``args`` asks for; empty for none."""
    return next((name for name in STUDIES if getattr(args, name)), "")


def _overhead(
    args: argparse.Namespace, plan: Plan, config: StartConfig, console: Console, progress_console: Console
) -> int:
    from specproxy.bench.alone import AloneEngine
    from specproxy.bench.overhead import measure_overhead, pairs_to_run, print_overhead

    engine = AloneEngine.load(config, progress_console.print)

    async def measure() -> Overhead:
        async with own_servers(plan, config, {}, progress_console.print) as answerers:
            with progress_bar(progress_console) as progress:
                task = progress.add_task("alone and over HTTP", total=pairs_to_run(plan))
                return await measure_overhead(plan, answerers, engine, lambda: progress.advance(task))

    overhead = asyncio.run(measure())
    print_overhead(console, overhead)
    if args.json:
        print(overhead.to_json())
    return 0


def _sweep(
    args: argparse.Namespace, plan: Plan, config: StartConfig, console: Console, progress_console: Console
) -> int:
    from specproxy.bench.alone import AloneEngine
    from specproxy.bench.sweep import best_sizes, deep, lines, measurements, run_sweep

    check_can_draw()
    wanted = [parse_arm(text).drafter for text in names(args.arms or "")]
    drafters = {name: drafter for name, drafter in deep(config.drafters).items() if not wanted or name in wanted}
    if unknown := sorted(set(wanted) - set(drafters)):
        raise StartError(f"--arms: {unknown[0]} is not declared; expected some of: {', '.join(deep(config.drafters))}")
    engine = AloneEngine.load(config, progress_console.print, drafters)
    chosen = lines(engine.drafters, trees=engine.numerics.trees)
    sweep = with_progress(
        progress_console, measurements(plan, chosen), lambda done: run_sweep(plan, engine, chosen, done)
    )
    draw(sweep, args.plot)
    notes = [*scaled(config), f"{study_method(plan)}; the picture is {args.plot}", *machine_notes(sweep.facts)]
    print_grids(args, console, [best_sizes(sweep)], [*notes, *_faults(sweep.categories)])
    if args.json:
        print(sweep.to_json())
    return 1 if any(map(faults, sweep.categories)) else 0


def _coupling(
    args: argparse.Namespace, plan: Plan, config: StartConfig, console: Console, progress_console: Console
) -> int:
    from specproxy.bench.alone import AloneEngine
    from specproxy.bench.draws import choose, coupling_table, measurements, run_coupling, twins

    arms = choose(config.drafters, names(args.arms or ""))
    engine = AloneEngine.load(config, progress_console.print, twins(config.drafters, arms))
    coupling = with_progress(
        progress_console, measurements(plan, arms), lambda done: run_coupling(plan, engine, arms, done)
    )
    meaning = (
        "right: share of the target's own tokens guessed one position ahead on the same logits; rejection: what "
        "rejection sampling would accept there; K as the controller chooses unless the arm fixes it"
    )
    notes = [*scaled(config), study_method(plan), meaning, *machine_notes(coupling.facts)]
    print_grids(args, console, [coupling_table(coupling)], [*notes, *_faults(coupling.categories)])
    if args.json:
        print(coupling.to_json())
    return 1 if any(map(faults, coupling.categories)) else 0


def _faults(categories: Sequence[Sequence[CategorySummary]]) -> list[str]:
    return [fault for summaries in categories for fault in faults(summaries)]


STUDIES: dict[str, Callable[[argparse.Namespace, Plan, StartConfig, Console, Console], int]] = {
    "overhead": _overhead,
    "sweep": _sweep,
    "coupling": _coupling,
    "steps": bench_device.steps,
    "batch": bench_device.batch,
    "intervals": bench_device.intervals,
    "identity": bench_device.identity,
    "audits": bench_device.audits,
}
"""By option."""
