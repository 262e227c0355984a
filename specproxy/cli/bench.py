"""``specproxy bench``: how fast, and whether the same, speculation on against off."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specproxy.bench.arms import parse_arms
from specproxy.bench.machine import usable_cores
from specproxy.bench.peers import Peers, peer_arms
from specproxy.bench.records import bundled, load_records, select
from specproxy.bench.report import faults, print_report, to_json
from specproxy.bench.runner import Measured
from specproxy.bench.session import (
    Answerers,
    Outcome,
    Plan,
    blocks,
    is_exact,
    method,
    notes,
    own_servers,
    run,
    running_server,
)
from specproxy.bench.summary import summarise
from specproxy.config.flags import add_config_flags, config_file, flag_settings
from specproxy.config.load import load_start_config
from specproxy.config.schema import StartConfig
from specproxy.errors import StartError

DESCRIPTION = """\
Answers every prompt with speculation off and on, one right after the other in alternating order, over HTTP, and
compares speed and text. Without --url it starts a server of its own from the start configuration."""

ARMS_HELP = (
    """comma-separated: policy (the routes as they are), auto, a drafter, or DRAFTER;k=N; off is always measured"""
)

REPORT_WIDTH = 140
"""Columns of a report that goes to a file."""

OVERHEAD_CONCURRENCY = 8
"""Requests at a time of the overhead measurement's second half."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser("bench", help="measure speculation on against off", description=DESCRIPTION)
    parser.set_defaults(run=run_command)
    parser.add_argument("prompts", nargs="?", type=Path, help="JSONL prompt file; default: the bundled mix")
    parser.add_argument("--arms", default="policy", help=ARMS_HELP)
    parser.add_argument("--categories", default="", help="comma-separated; default: all")
    parser.add_argument("--limit", type=_count, metavar="N", help="prompts per category at most")
    parser.add_argument("--concurrency", type=_count, metavar="N", help="prompts at a time; default: 1")
    parser.add_argument("--repeats", type=_count, default=1, metavar="N", help="how often everything is measured")
    parser.add_argument("--max-tokens", type=_count, default=256, metavar="N", help="length of an answer at most")
    parser.add_argument("--greedy", action="store_true", help="temperature 0, whatever the prompts say")
    parser.add_argument(
        "--json", action="store_true", help="one line of JSON on standard output, the table on the other"
    )
    parser.add_argument("--url", metavar="URL", help="a running server, such as http://127.0.0.1:8000/v1")
    parser.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", metavar="NAME", help="where the key for --url stands"
    )
    parser.add_argument("--no-numeric", action="store_true", help="leave out the plain arm in numeric mode")
    parser.add_argument("--peers", action="store_true", help="transformers' generate on the same prompts, greedy")
    parser.add_argument("--overhead", action="store_true", help="instead: what HTTP and the socket add to the engine")
    add_config_flags(parser)


def run_command(args: argparse.Namespace) -> int:
    """Measure and report. 0: all answers came and equal plain decoding; 1: some did not. Raises StartError."""
    output = sys.stderr if args.json else sys.stdout
    console = Console(file=output, width=None if output.isatty() else REPORT_WIDTH)
    progress = Console(stderr=True)
    if args.url and (args.peers or args.overhead):
        raise StartError("--peers and --overhead load the model themselves; leave --url out")
    if args.peers and (args.concurrency or 1) > 1:
        raise StartError("--peers answers one prompt at a time; leave --concurrency out")
    plan = _plan(args)
    if args.overhead:
        return _report_overhead(args, plan, console, progress)
    outcome = asyncio.run(_measure(args, plan, progress))
    summaries = summarise(outcome.results, plan.arms, exact=is_exact(outcome.facts))
    print_report(console, summaries, [method(plan), *notes(outcome.facts)])
    if args.json:
        print(to_json(summaries, outcome.facts | {"plan": _plan_facts(plan)}))
    return 1 if faults(summaries) else 0


def _plan(args: argparse.Namespace) -> Plan:
    records = select(load_records(args.prompts or bundled()), _names(args.categories), args.limit)
    if args.overhead:
        arms = parse_arms([], numeric=False)
    else:
        arms = parse_arms(_names(args.arms), numeric=not args.no_numeric and not args.url)
    if args.peers:
        arms += peer_arms(assistant=_assistant(_config(args)) is not None)
    return Plan(
        records=records,
        arms=arms,
        concurrency=args.concurrency or (OVERHEAD_CONCURRENCY if args.overhead else 1),
        repeats=args.repeats,
        max_tokens=args.max_tokens,
        greedy=args.greedy or args.peers,
    )


async def _measure(args: argparse.Namespace, plan: Plan, console: Console) -> Outcome:
    if args.url:
        url = args.url.rstrip("/")
        async with running_server(plan, url, os.environ.get(args.api_key_env)) as answerers:
            return await _with_progress(plan, answerers, console)
    config = _config(args)
    peers = _peers(config, console) if args.peers else None
    async with own_servers(plan, config, peers, console.print) as answerers:
        return await _with_progress(plan, answerers, console)


async def _with_progress(plan: Plan, answerers: Answerers, console: Console) -> Outcome:
    with _progress(console) as progress:
        task = progress.add_task("warming up", total=len(blocks(plan)) * len(plan.arms))

        def done(measured: Measured) -> None:
            progress.update(task, advance=1, description=f"{measured.block.category}, {measured.arm}")

        return await run(plan, answerers, done)


def _report_overhead(args: argparse.Namespace, plan: Plan, console: Console, progress_console: Console) -> int:
    """Imports torch, for the engine in this process."""
    from specproxy.bench.alone import AloneEngine
    from specproxy.bench.overhead import Overhead, measure_overhead, pairs_to_run, print_overhead

    config = _config(args)
    engine = AloneEngine.load(config, progress_console.print)

    async def measure() -> Overhead:
        async with own_servers(plan, config, None, progress_console.print) as answerers:
            with _progress(progress_console) as progress:
                task = progress.add_task("alone and over HTTP", total=pairs_to_run(plan))
                return await measure_overhead(plan, answerers, engine, lambda: progress.advance(task))

    overhead = asyncio.run(measure())
    print_overhead(console, overhead)
    if args.json:
        print(overhead.to_json())
    return 0


def _config(args: argparse.Namespace) -> StartConfig:
    return load_start_config(config_file(args, os.environ), os.environ, flag_settings(args))


def _peers(config: StartConfig, console: Console) -> Peers:
    """transformers' own models: the target, and the first draft model that is declared as the assistant."""
    from specproxy.models.loading import find_model

    console.print("loading the models in transformers")
    path = _assistant(config)
    assistant = None if path is None else find_model(path, "draft")
    threads = config.model.threads
    return Peers.load(
        find_model(config.model.path, "target"),
        assistant,
        dtype=config.model.dtype,
        threads=usable_cores() if threads == "auto" else threads,
    )


def _assistant(config: StartConfig) -> str | None:
    return next((drafter.path for drafter in config.drafters.values() if drafter.type == "draft_model"), None)


def _plan_facts(plan: Plan) -> dict[str, object]:
    return {
        "prompts": len(plan.records),
        "arms": [arm.name for arm in plan.arms],
        "concurrency": plan.concurrency,
        "repeats": plan.repeats,
        "max_tokens": plan.max_tokens,
        "greedy": plan.greedy,
    }


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value
