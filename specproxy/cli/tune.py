"""``specproxy tune``: search what speculates fastest for each route, and write it as a candidate for the gate."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress as Bar

from specproxy.bench.records import load_records, select
from specproxy.bench.session import machine_notes, surroundings
from specproxy.cli.bench_setup import count, progress_bar
from specproxy.config.flags import add_config_flags, config_file, flag_settings
from specproxy.config.load import load_start_config
from specproxy.errors import StartError
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.policy import PolicySet

if TYPE_CHECKING:
    from specproxy.bench.alone import AloneEngine
    from specproxy.bench.records import Record
    from specproxy.tune.session import Options, Progress, Tuned

DESCRIPTION = """\
Answers the prompts of each route as it speculates now and as it could: with every declared drafter, several ranges of
K, and trees where the drafter grows them. The slower half of the settings leaves, again and again; the winner is tested
on prompts that the search did not see. What is faster is written as a candidate with its evidence. The active policies
are never touched."""

EPILOG = """\
examples:
  specproxy tune --prompts traffic.jsonl --route structured       writes structured.candidate.yaml
  specproxy tune --prompts traffic.jsonl --out tuned              every route; writes the whole set into tuned/
  specproxy policy plan tuned --requests traffic.jsonl            what that set would change
  cp structured.candidate.yaml policies/10-structured.yaml        hands it to the gate"""

WHOLE_SET = "tuned"
REPORT_WIDTH = 150


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "tune",
        help="search the fastest speculation for each route on this machine",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run_command)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="JSONL, as of specproxy bench")
    parser.add_argument("--route", metavar="NAME", help="this route alone; default: all that have prompts")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help=f"with --route a file, default: NAME.candidate.yaml; without a new folder, default: {WHOLE_SET}",
    )
    parser.add_argument("--pairs", type=count, default=300, metavar="N", help="pairs of answers a route; default: 300")
    parser.add_argument("--limit", type=count, metavar="N", help="prompts per category at most")
    parser.add_argument("--max-tokens", type=count, default=256, metavar="N", help="length of an answer at most")
    parser.add_argument("--at-once", type=count, default=1, metavar="N", help="prompts answered at a time; default: 1")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides every order; default: 0")
    parser.add_argument(
        "--json", action="store_true", help="one line of JSON on standard output, the rest on the other"
    )
    add_config_flags(parser)


def run_command(args: argparse.Namespace) -> int:
    """Search, show, write. 0, also where nothing was faster. Imports torch. Raises StartError."""
    from specproxy.bench.alone import AloneEngine
    from specproxy.tune.report import conclusion, method, table
    from specproxy.tune.session import Options, to_json

    output = sys.stderr if args.json else sys.stdout
    console, progress = Console(file=output, width=None if output.isatty() else REPORT_WIDTH), Console(stderr=True)
    config = load_start_config(config_file(args, os.environ), os.environ, flag_settings(args))
    catalogue = Catalogue.from_config(config)
    active = PolicySet.load(Path(config.policies), catalogue)
    out = _out(args, Path(config.policies), active)
    records = select(load_records(args.prompts), limit=args.limit)
    facts = surroundings()
    engine = AloneEngine.load(config, progress.print, config.drafters)
    policies = PolicySet.load(Path(config.policies), catalogue.with_engine(engine.drafters, engine.numerics))
    options = Options(pairs=args.pairs, max_tokens=args.max_tokens, at_once=args.at_once, seed=args.seed)
    tuned = _tune(args, engine, policies, records, options, progress)
    written = _write(out, policies, tuned, options, facts, single=args.route is not None)
    for item in tuned:
        console.print(table(item).rich())
    where = f"written: {', '.join(written)}" if written else "nothing is written: what is active stays"
    for note in (method(options), *machine_notes(facts), *map(conclusion, tuned), where):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if args.json:
        print(to_json(tuned, written, facts))
    return 0


def _out(args: argparse.Namespace, policies: Path, active: PolicySet) -> Path:
    """Where candidates go; asked before anything is measured. Raises StartError for a place that is in use."""
    names = [route.name for route in active.routes]
    if args.route is not None and args.route not in names:
        raise StartError(f"--route: there is no route {args.route}; expected one of: {', '.join(names)}")
    out: Path = args.out or Path(WHOLE_SET if args.route is None else f"{args.route}.candidate.yaml")
    folder = out if args.route is None else out.parent
    if folder.resolve() == policies.resolve():
        raise StartError(f"--out: {out} would be active at once; expected a place outside of {policies}")
    if args.route is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StartError(f"--out: {out} is there already; expected a new folder, or an empty one")
    if args.route is not None and (out.is_dir() or not folder.is_dir()):
        raise StartError(f"--out: expected a file in a folder that exists, got {out}")
    return out


def _tune(
    args: argparse.Namespace,
    engine: AloneEngine,
    policies: PolicySet,
    records: Sequence[Record],
    options: Options,
    console: Console,
) -> list[Tuned]:
    from specproxy.tune.session import assign, tune_route

    prompts = assign(policies, records, engine)
    wanted = [route for route in policies.routes if args.route in (None, route.name)]
    if not any(prompts[route.name] for route in wanted):
        reached = ", ".join(f"{name}: {len(mine)}" for name, mine in prompts.items())
        raise StartError(f"--prompts: no prompt goes to the route that is tuned; they go to: {reached}")

    async def run(bar: Bar) -> list[Tuned]:
        progress = _progress(bar)
        return [
            await tune_route(engine, route, prompts[route.name], options, progress)
            for route in wanted
            if prompts[route.name]
        ]

    with progress_bar(console) as bar:
        return asyncio.run(run(bar))


def _progress(bar: Bar) -> Progress:
    """A bar a route; pairs that early decisions saved count as done at its end."""
    from specproxy.tune.session import Progress

    task = bar.add_task("loading", total=None)

    def end() -> None:
        bar.update(task, completed=bar.tasks[0].total)

    return Progress(
        begin=lambda route, pairs: bar.reset(task, total=pairs, description=route),
        pair=lambda what: bar.update(task, advance=1, description=what),
        end=end,
    )


def _write(
    out: Path, policies: PolicySet, tuned: Sequence[Tuned], options: Options, facts: dict[str, Any], *, single: bool
) -> list[str]:
    """The candidate: ``single``, the one file that changes, else the whole set in a folder; what was written."""
    from specproxy.tune.candidate import check_set, edit, whole_set
    from specproxy.tune.report import evidence
    from specproxy.tune.session import changed

    better = changed(tuned)
    if not better:
        return []
    date = datetime.now(UTC).date().isoformat()
    comments = {
        item.route: evidence(item, item.winner, options, facts, date) for item in better if item.winner is not None
    }
    texts = edit(policies, better, comments)
    files = whole_set(policies.directory, texts)
    check_set(files, policies.catalogue)
    if single:
        (text,) = texts.values()
        return _write_files({out: text})
    return _write_files({out / name: text for name, text in files.items()})


def _write_files(files: Mapping[Path, str]) -> list[str]:
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StartError(f"--out: {path} cannot be written: {error.strerror}") from None
    return [str(path) for path in files]
