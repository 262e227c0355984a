"""``specproxy drafter list|load|unload``: which drafters a running server has. They ask its admin API."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specproxy.cli.admin_client import AdminClient
from specproxy.config.flags import add_config_flags, config_file, flag_settings
from specproxy.config.load import DRAFTER_FORM, load_start_config, parse_drafter
from specproxy.errors import ConfigError

EPILOG = """\
examples:
  specproxy drafter list
  specproxy drafter load head2=eagle3:/models/head2 --reason "trained on October"
  specproxy drafter load wide=ngram --option max_n=8 --reason "try longer matches"
  specproxy drafter unload head --reason "head2 is active"

Paths are the server's. New weights come under a new name: load them, let the policy name them, wait until the gate
has let that pass, and unload the old ones."""

MIB = 2**20


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its own subcommands."""
    parser = subparsers.add_parser(
        "drafter",
        help="load, unload and list the drafters of a running server",
        description="Load, unload and list the drafters of a running server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listed = actions.add_parser("list", help="what is loaded, and the routes that use it")
    listed.set_defaults(run=_list)
    load = actions.add_parser("load", help="load one; it is tested first, and nothing changes where it fails")
    load.set_defaults(run=_load)
    load.add_argument("drafter", metavar="NAME=TYPE[:PATH]", help="the path is the server's")
    load.add_argument("--max-k", metavar="K", type=int, help="levels that it may draft; default: the type's own")
    load.add_argument("--option", metavar="KEY=VALUE", action="append", default=[], help="an option of the type")
    unload = actions.add_parser("unload", help="drop one that no route names")
    unload.set_defaults(run=_unload)
    unload.add_argument("name", metavar="NAME")
    unload.add_argument("--if-match", metavar="ETAG", help="fail unless it is still this one")
    load.add_argument("--if-match", metavar="ETAG", help="replace the one of that name if it is still this one")
    for action in (load, unload):
        action.add_argument("--reason", required=True, help="the audit log keeps it")
    for action in (listed, load, unload):
        action.add_argument("--admin", metavar="URL", help="http://HOST:PORT or unix:/PATH; default: as configured")
        action.add_argument("--json", action="store_true", help="for machines")
        add_config_flags(action)


def _list(args: argparse.Namespace) -> int:
    return _show(args, _ask(args, lambda client: client.drafters()))


def _load(args: argparse.Namespace) -> int:
    try:
        name, found = parse_drafter(args.drafter)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    body = {**found, "options": _options(args.option), "max_k": args.max_k, "reason": args.reason}
    answer = _ask(args, lambda client: client.load_drafter(name, body, etag=args.if_match))
    return _show(args, answer, [answer])


def _unload(args: argparse.Namespace) -> int:
    async def unload(client: AdminClient) -> dict[str, Any]:
        etag = args.if_match or _etag(args.name, await client.drafters())
        return await client.unload_drafter(args.name, reason=args.reason, etag=etag)

    return _show(args, _ask(args, unload))


def _etag(name: str, found: dict[str, Any]) -> str:
    """Raises ConfigError where the server has no such drafter."""
    etags = {item["name"]: item["etag"] for item in found["drafters"]}
    if name not in etags:
        raise ConfigError(f"the server has no drafter {name}; it has: {', '.join(etags) or 'none'}")
    return str(etags[name])


def _options(given: list[str]) -> dict[str, str]:
    """``KEY=VALUE`` as options; the type reads them as what it needs. Raises ConfigError."""
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--option: expected KEY=VALUE, got {text}; the drafter itself is {DRAFTER_FORM}")
        options[key.strip()] = value
    return options


def _show(args: argparse.Namespace, answer: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> int:
    """Print the answer, whose drafters are ``rows``, or stand in it."""
    if args.json:
        print(msgspec.json.encode(answer).decode())
        return 0
    table = Table("name", "type", "path", "from", "K", "memory", "fingerprint", "drafts on")
    for item in answer["drafters"] if rows is None else rows:
        memory = f"{(item['weight_bytes'] + item['kv_bytes']) / MIB:.1f} MB"
        routes = ", ".join(item["routes"]) if item["loaded"] else f"not loaded: {item['problem']}"
        origin, most = item["declared"].removeprefix("by the ").removeprefix("at "), item["max_k"]
        row = (item["name"], item["type"], item["path"], origin, str(most or ""), memory, item["fingerprint"][:12])
        table.add_row(*map(escape, (*row, routes)))
    console = Console()
    console.print(table)
    if answer.get("doing"):
        console.print(f"under way: {escape(answer['doing'])}")
    return 0


def _ask(
    args: argparse.Namespace, question: Callable[[AdminClient], Coroutine[Any, Any, dict[str, Any]]]
) -> dict[str, Any]:
    config = load_start_config(config_file(args, os.environ), os.environ, flag_settings(args))

    async def run() -> dict[str, Any]:
        async with AdminClient.from_config(config.admin, url=args.admin) as client:
            return await question(client)

    return asyncio.run(run())
