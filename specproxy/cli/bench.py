"""``specproxy bench``: how fast, and whether the same, speculation on against off."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console

from specproxy.bench.arms import POLICY, parse_arms
from specproxy.bench.field import drafters_of, field_arms
from specproxy.bench.openvino_peer import WAYS, openvino_arms, openvino_peer
from specproxy.bench.peers import Peer
from specproxy.bench.records import bundled, load_records, select
from specproxy.bench.report import faults, markdown, print_report, to_json
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
from specproxy.bench.summary import add_memory, summarise
from specproxy.cli.bench_engine import OVERHEAD_CONCURRENCY, run_study, study_of
from specproxy.cli.bench_setup import (
    assistant,
    count,
    hf_arms,
    hf_peers,
    names,
    numbers,
    openvino_setup,
    plot_file,
    progress_bar,
    scaled,
    start_config,
)
from specproxy.config.flags import add_config_flags
from specproxy.config.schema import StartConfig
from specproxy.errors import StartError
from specproxy.models.grown.shapes import DRAFTS

DESCRIPTION = """\
Answers every prompt with speculation off and on, one right after the other in alternating order, over HTTP, and
compares speed and text. Without --url it starts a server of its own from the start configuration."""

ARMS_HELP = (
    "comma-separated: policy (the routes as they are), auto, a drafter, DRAFTER;k=N, or for trees DRAFTER;width=W and "
    "DRAFTER;width=W;nodes=N; off is always measured; default: policy"
)

REPORT_WIDTH = 140
"""Columns of a report that goes to a file."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser("bench", help="measure speculation on against off", description=DESCRIPTION)
    parser.set_defaults(run=run_command)
    parser.add_argument("prompts", nargs="?", type=Path, help="JSONL prompt file; default: the bundled mix")
    parser.add_argument("--arms", help=ARMS_HELP)
    parser.add_argument("--categories", default="", help="comma-separated; default: all")
    parser.add_argument("--limit", type=count, metavar="N", help="prompts per category at most")
    parser.add_argument("--concurrency", type=count, metavar="N", help="prompts at a time; default: 1")
    parser.add_argument("--repeats", type=count, default=1, metavar="N", help="how often everything is measured")
    parser.add_argument("--max-tokens", type=count, default=256, metavar="N", help="length of an answer at most")
    parser.add_argument("--greedy", action="store_true", help="temperature 0, whatever the prompts say")
    parser.add_argument(
        "--json", action="store_true", help="one line of JSON on standard output, the table on the other"
    )
    parser.add_argument("--url", metavar="URL", help="a running server, such as http://127.0.0.1:8000/v1")
    parser.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", metavar="NAME", help="where the key for --url stands"
    )
    parser.add_argument("--no-numeric", action="store_true", help="leave out the plain arm in numeric mode")
    parser.add_argument("--markdown", action="store_true", help="the tables of the methods in Markdown")
    parser.add_argument(
        "--all-drafters", action="store_true", help="every kind of drafter of the bundled model, the arms with them"
    )
    parser.add_argument("--k", type=count, metavar="N", help="levels drafted by the arms of --all-drafters, but auto")
    parser.add_argument(
        "--scale",
        metavar="SHAPE",
        choices=sorted(DRAFTS),
        help="grow the target, its heads and draft models into a large model's shape: real text and acceptance at its "
        f"cost; one of {', '.join(sorted(DRAFTS))}",
    )
    _add_peers(parser)
    _add_studies(parser)
    add_config_flags(parser)


def _add_peers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("other libraries", "on the same prompts, greedy, one at a time")
    group.add_argument("--peers", action="store_true", help="transformers' generate, in this process")
    group.add_argument("--openvino", action="store_true", help="OpenVINO GenAI, in a process of its own")
    group.add_argument("--openvino-python", metavar="PATH", help="a Python that has it; default: this one")
    group.add_argument("--openvino-models", metavar="DIR", type=Path, help="where converted models are kept")


def _add_studies(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("instead", "studies with the engine in this process")
    studies = group.add_mutually_exclusive_group()
    studies.add_argument("--overhead", action="store_true", help="what HTTP and the socket add to the engine")
    studies.add_argument("--sweep", action="store_true", help="speed against levels drafted, for chains and trees")
    studies.add_argument("--coupling", action="store_true", help="coupled against greedy drafts at T = 0.8 and 1")
    studies.add_argument(
        "--steps", action="store_true", help="the target's step and its parts beside the memory's speed"
    )
    studies.add_argument("--batch", type=numbers, metavar="N,N,…", help="throughput at so many sequences at a time")
    studies.add_argument("--intervals", action="store_true", help="the time between steps, drafting and plain")
    studies.add_argument("--identity", type=count, metavar="N", help="on against off, bit by bit, over N prompts")
    studies.add_argument(
        "--audits",
        nargs="?",
        const="all",
        choices=("all", "cost", "power"),
        help="what audits cost users, which faults they find, or both",
    )
    group.add_argument(
        "--answers", type=count, metavar="N", default=1000, help="looked through for a fault of --audits; default: 1000"
    )
    group.add_argument(
        "--context", type=numbers, metavar="N,N,…", help="tokens before the step of --steps, beyond the model's too"
    )
    group.add_argument("--plot", metavar="FILE", type=plot_file, default=Path("sweep.png"), help="picture of --sweep")


def run_command(args: argparse.Namespace) -> int:
    """Measure and report. 0: all answers came and equal plain decoding; 1: some did not. Raises StartError."""
    output = sys.stderr if args.json else sys.stdout
    console = Console(file=output, width=None if output.isatty() else REPORT_WIDTH)
    progress = Console(stderr=True)
    _check(args)
    config = None if args.url else start_config(args)
    plan = _plan(args, config)
    if config is not None and study_of(args):
        return run_study(args, plan, config, console, progress)
    outcome = asyncio.run(_measure(args, plan, config, progress))
    summaries = summarise(outcome.results, plan.arms, exact=is_exact(outcome.facts))
    add_memory(summaries, plan.arms, drafters_of(outcome.facts))
    said = [*scaled(config), method(plan), *notes(outcome.facts)]
    if args.markdown:
        console.print(markdown(summaries, said), markup=False, highlight=False, soft_wrap=True)
    else:
        print_report(console, summaries, said)
    if args.json:
        print(to_json(summaries, outcome.facts | {"plan": _plan_facts(plan)}))
    return 1 if faults(summaries) else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse combinations that would measure something else than was asked for. Raises StartError."""
    others, study = args.peers or args.openvino or args.openvino_python, study_of(args)
    local = [name for name in ("peers", study, "all_drafters", "scale") if name and getattr(args, name)]
    if args.url and (local or others):
        flag = local[0] if local else "openvino"
        raise StartError(f"--{flag.replace('_', '-')} loads the model itself; leave --url out")
    if args.scale and (args.openvino or args.openvino_python):
        raise StartError("--scale grows our own target, which OpenVINO does not run; leave one of the two out")
    if args.k is not None and (args.arms is not None or not args.all_drafters):
        raise StartError("--k goes with --all-drafters alone; an arm says its own: DRAFTER;k=N")
    if others and (args.concurrency or 1) > 1:
        raise StartError("other libraries answer one prompt at a time; leave --concurrency out")
    if study not in ("", "overhead", "audits") and (args.concurrency or 1) > 1:
        raise StartError(f"--{study} says itself how many prompts run at a time; leave --concurrency out")
    if args.context and not args.steps:
        raise StartError("--context is that of --steps; add it, or leave --context out")
    if args.steps and args.prompts:
        raise StartError(f"--steps answers no prompts; leave {args.prompts} out")


def _plan(args: argparse.Namespace, config: StartConfig | None) -> Plan:
    records = select(load_records(args.prompts or bundled()), names(args.categories), args.limit)
    openvino = args.openvino or args.openvino_python is not None
    if study_of(args):
        arms = parse_arms([], numeric=False)
    else:
        arms = parse_arms(_wanted(args, config), numeric=not args.no_numeric and not args.url)
    if args.url and any(arm.width > 1 for arm in arms):
        raise StartError(
            "--url: a request cannot ask a running server for trees; give its routes trees, or leave --url out"
        )
    if config is not None and args.peers:
        arms += hf_arms(config)
    if config is not None and openvino:
        arms += openvino_arms(draft=assistant(config) is not None)
    return Plan(
        records=records,
        arms=arms,
        concurrency=args.concurrency or (OVERHEAD_CONCURRENCY if args.overhead else 1),
        repeats=args.repeats,
        max_tokens=args.max_tokens,
        greedy=args.greedy or args.peers or openvino,
    )


def _wanted(args: argparse.Namespace, config: StartConfig | None) -> list[str]:
    """The arms of the command line, or those that follow from it."""
    if args.arms is not None:
        return names(args.arms)
    if args.all_drafters and config is not None:
        return field_arms(config.drafters, args.k)
    return [POLICY]


async def _measure(args: argparse.Namespace, plan: Plan, config: StartConfig | None, console: Console) -> Outcome:
    if config is None:
        url = args.url.rstrip("/")
        async with running_server(plan, url, os.environ.get(args.api_key_env)) as answerers:
            return await _with_progress(plan, answerers, console)
    async with AsyncExitStack() as stack:
        peers: dict[str, Peer] = {}
        software: dict[str, str] = {}
        if args.peers:
            peers |= hf_peers(config, console)
        if args.openvino or args.openvino_python is not None:
            setup = openvino_setup(args, config)
            peer = await stack.enter_async_context(openvino_peer(setup, console.print))
            software = peer.facts
            peers |= dict.fromkeys(WAYS, peer)
        answerers = await stack.enter_async_context(own_servers(plan, config, peers, console.print))
        answerers.facts["software"] |= software
        return await _with_progress(plan, answerers, console)


async def _with_progress(plan: Plan, answerers: Answerers, console: Console) -> Outcome:
    with progress_bar(console) as progress:
        task = progress.add_task("warming up", total=len(blocks(plan)) * len(plan.arms))

        def done(measured: Measured) -> None:
            progress.update(task, advance=1, description=f"{measured.block.category}, {measured.arm}")

        return await run(plan, answerers, done)


def _plan_facts(plan: Plan) -> dict[str, object]:
    return {
        "prompts": len(plan.records),
        "arms": [arm.name for arm in plan.arms],
        "concurrency": plan.concurrency,
        "repeats": plan.repeats,
        "max_tokens": plan.max_tokens,
        "greedy": plan.greedy,
    }
