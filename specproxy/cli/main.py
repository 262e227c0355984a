"""``specproxy``: the entry point. Finds the subcommand, imports it alone, turns StartErrors into one message."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from specproxy import __version__
from specproxy.errors import StartError, StoreDamaged

DESCRIPTION = """\
An OpenAI-compatible proxy that owns a model and speculates per route, as YAML policies say. What it
speculates never changes an answer, only how fast it comes."""

EPILOG = """\
first steps:
  specproxy serve                                  the bundled model on http://127.0.0.1:8000/v1
  specproxy serve --model ORG/MODEL --drafter ngram=ngram --policies policies
  specproxy policy check policies
  specproxy bench"""

COMMANDS = {
    "serve": "load a model and answer requests",
    "policy": "check, explain and test policy files; see and move the gate's candidates",
    "drafter": "load, unload and list the drafters of a running server",
    "audit": "compute a stored answer again and compare it",
    "tune": "search the fastest speculation for each route on this machine",
    "bench": "measure speculation on against off",
    "train": "train a drafting head or a draft model",
}
"""Subcommands and what they do. Each has a module of its name beside this one, with ``register(subparsers)``."""

FAILED = 1
USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser(given[0] if given else "").parse_args(given)
    try:
        code: int = args.run(args)
    except (StartError, StoreDamaged) as error:
        print(f"specproxy: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130
    return code


def build_parser(command: str) -> argparse.ArgumentParser:
    """The parser with the arguments of ``command``; the other commands are only named, as importing them is slow."""
    parser = argparse.ArgumentParser(
        prog="specproxy", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"specproxy {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        if name == command:
            importlib.import_module(f"specproxy.cli.{name}").register(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
