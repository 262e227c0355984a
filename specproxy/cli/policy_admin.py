"""``specproxy policy promote|rollback|pause|resume|kill|plan``: what a person orders of a running server, and what a
candidate would change. They ask the server's admin API; ``plan`` also works without one."""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
from rich.console import Console

from specproxy.cli.admin_client import AdminClient, Order, RevisionInfo
from specproxy.cli.policy_gate import LEAST_PREFIX
from specproxy.cli.policy_gate_view import print_plan
from specproxy.config.flags import add_config_flags, config_file, flag_settings
from specproxy.config.load import load_start_config
from specproxy.config.schema import StartConfig
from specproxy.errors import ConfigError
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.plan import Plan, plan
from specproxy.policy.policy import PolicySet
from specproxy.policy.reading import policy_files
from specproxy.policy.request_file import read_requests

T = TypeVar("T")

ORDERS: dict[Order, tuple[str, frozenset[str]]] = {
    "promote": ("make a candidate active, where its evidence allows it", frozenset({"shadow", "canary", "paused"})),
    "rollback": ("let what served before serve again", frozenset({"active"})),
    "pause": ("keep a candidate from moving on", frozenset({"validated", "shadow", "canary"})),
    "resume": ("let a paused candidate move on", frozenset({"paused"})),
}
"""Order → what it does, and the phases of the revisions that it is meant for where none is named."""


def add_admin_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands that a server obeys, and ``plan``."""
    made = []
    for order in get_args(Order):
        parser = actions.add_parser(order, help=ORDERS[order][0])
        parser.set_defaults(run=functools.partial(_order, order))
        parser.add_argument("route", metavar="ROUTE")
        parser.add_argument("revision", metavar="REVISION", nargs="?", help="its first digits; default: the only one")
        parser.add_argument("--if-match", metavar="ETAG", help="fail unless its state is still this one")
        made.append(parser)
    kill = actions.add_parser("kill", help="switch speculation off at the next step; no gate is asked")
    kill.set_defaults(run=_kill)
    kill.add_argument("route", metavar="ROUTE", nargs="?", help="default: all")
    kill.add_argument("--lift", action="store_true", help="switch it on again")
    for parser in (*made, kill):
        parser.add_argument("--reason", required=True, help="the audit log keeps it")
    planned = actions.add_parser("plan", help="which requests a candidate set would treat otherwise")
    planned.set_defaults(run=_plan)
    planned.add_argument("directory", metavar="DIR", type=Path, help="the candidate set")
    planned.add_argument(
        "--requests", metavar="FILE.jsonl", type=Path, help="bodies or envelopes; default: the server's last requests"
    )
    for parser in (*made, kill, planned):
        parser.add_argument("--admin", metavar="URL", help="http://HOST:PORT or unix:/PATH; default: as configured")
        parser.add_argument("--json", action="store_true", help="for machines")
        add_config_flags(parser)


def _order(order: Order, args: argparse.Namespace) -> int:
    async def give(client: AdminClient) -> dict[str, Any]:
        info = _chosen(order, args.route, args.revision, await client.revisions(args.route))
        return await client.order(order, args.route, info.revision, reason=args.reason, etag=args.if_match or info.etag)

    return _said(args, _ask(args, give))


def _kill(args: argparse.Namespace) -> int:
    async def give(client: AdminClient) -> dict[str, Any]:
        call = client.lift if args.lift else client.kill
        return await call(args.route, reason=args.reason)

    return _said(args, _ask(args, give))


def _plan(args: argparse.Namespace) -> int:
    found = _offline(args) if args.requests else _ask(args, lambda client: client.plan(_files(args.directory)))
    if args.json:
        print(msgspec.json.encode(found).decode())
    else:
        print_plan(Console(), found)
    return 0


def _offline(args: argparse.Namespace) -> Plan:
    """Against the policy directory of the start configuration, without a server."""
    config = _config(args)
    catalogue = Catalogue.from_config(config)
    active, candidate = (PolicySet.load(folder, catalogue) for folder in (Path(config.policies), args.directory))
    return plan([envelope.facts() for envelope in read_requests(args.requests)], active, candidate)


def _files(directory: Path) -> dict[str, str]:
    """The set's files by name. Raises ConfigError."""
    try:
        files = {path.name: path.read_text(encoding="utf-8") for path in policy_files(directory)}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{directory}: cannot be read: {error}") from None
    if not files:
        raise ConfigError(f"{directory}: holds no policy files (*.yaml)")
    return files


def _chosen(order: Order, route: str, prefix: str | None, revisions: list[RevisionInfo]) -> RevisionInfo:
    """The revision that is meant. Raises ConfigError where that is not one."""
    if prefix is None:
        found = [info for info in revisions if info.phase in ORDERS[order][1]]
        asked = f"no single revision of route {route} can be meant by {order}"
    else:
        found = [info for info in revisions if len(prefix) >= LEAST_PREFIX and info.revision.startswith(prefix)]
        asked = f'"{prefix}" names no single revision of route {route}'
    if len(found) != 1:
        known = ", ".join(f"{info.revision[:12]} ({info.phase})" for info in revisions) or "none"
        raise ConfigError(f"{asked}; the server has: {known}")
    return found[0]


def _said(args: argparse.Namespace, answer: dict[str, Any]) -> int:
    text = msgspec.json.encode(answer)
    print((text if args.json else msgspec.json.format(text)).decode())
    return 0


def _config(args: argparse.Namespace) -> StartConfig:
    return load_start_config(config_file(args, os.environ), os.environ, flag_settings(args))


def _ask(args: argparse.Namespace, question: Callable[[AdminClient], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        async with AdminClient.from_config(_config(args).admin, url=args.admin) as client:
            return await question(client)

    return asyncio.run(run())
