"""``specproxy policy log|verify|status|diff``: what the gate's file says. It is only read, also beside a server that
writes it."""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from specproxy.cli.policy_gate_view import print_diff, print_log, print_status
from specproxy.config.flags import add_config_flags, config_file, flag_settings
from specproxy.config.load import load_start_config
from specproxy.errors import ConfigError, StoreDamaged
from specproxy.gate.assessment import Assessment, assess
from specproxy.gate.read_only import ReadOnlyStore
from specproxy.gate.rules import rules_for
from specproxy.gate.states import ENDS, GateState
from specproxy.gate.store import AuditEntry, Revision

PAGE = 1000
"""Log entries read at a time."""

LEAST_PREFIX = 4
"""Digits that name a revision at least."""


class Standing(msgspec.Struct, frozen=True):
    """A revision with the share of conversations that it serves, and what is known of it."""

    state: GateState
    share: float
    assessment: Assessment


class Difference(msgspec.Struct, frozen=True):
    """A setting or condition that two revisions have otherwise; ``None``: one of them has none."""

    key: str
    old: Any
    new: Any


def add_gate_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands that read the gate's file."""
    log = actions.add_parser("log", help="the audit log: who moved what, when and why")
    log.set_defaults(run=_log)
    log.add_argument("--after", metavar="N", type=int, default=0, help="entries after this one")
    log.add_argument("--limit", metavar="N", type=_count, help="the last N of them; default: all")
    log.add_argument("--route", metavar="NAME", help="of one route")
    verify = actions.add_parser("verify", help="whether the audit log is whole; exit code 1 where it is not")
    verify.set_defaults(run=_verify)
    status = actions.add_parser("status", help="where every revision stands, and what is proven of it")
    status.set_defaults(run=_status)
    status.add_argument("--route", metavar="NAME", help="of one route")
    status.add_argument("--all", action="store_true", help="also those that came to an end")
    diff = actions.add_parser("diff", help="what two revisions of a route have otherwise")
    diff.set_defaults(run=_diff)
    diff.add_argument("route", metavar="ROUTE")
    diff.add_argument("old", metavar="OLD", nargs="?", help="first digits of a revision; default: what is active")
    diff.add_argument("new", metavar="NEW", nargs="?", help="default: the newest that is on its way")
    for action in (log, verify, status, diff):
        action.add_argument("--db", metavar="FILE", type=Path, help="the gate's file; default: state.path")
        action.add_argument("--json", action="store_true", help="for machines")
        add_config_flags(action)


def _log(args: argparse.Namespace) -> int:
    with closing(_store(args)) as store:
        entries = [entry for entry in _entries(store, args.after) if args.route in (None, entry.route)]
    entries = entries[-args.limit :] if args.limit else entries
    if args.json:
        print(msgspec.json.encode(entries).decode())
    else:
        print_log(Console(), entries)
    return 0


def _verify(args: argparse.Namespace) -> int:
    with closing(_store(args)) as store:
        try:
            count = store.verify()
        except StoreDamaged as error:
            if not args.json:
                raise
            print(msgspec.json.encode({"whole": False, "damage": str(error)}).decode())
            return 1
    if args.json:
        print(msgspec.json.encode({"whole": True, "entries": count}).decode())
    else:
        print(f"{count} entries; each follows the one before it, and the states are what the last ones say")
    return 0


def _status(args: argparse.Namespace) -> int:
    with closing(_store(args)) as store:
        found = [_standing(store, state) for state in store.states(args.route)]
    found = [item for item in found if args.all or item.state.phase not in ENDS]
    if args.json:
        print(msgspec.json.encode(found).decode())
    else:
        print_status(Console(), found, time.time())
    return 0


def _diff(args: argparse.Namespace) -> int:
    with closing(_store(args)) as store:
        states = store.states(args.route)
        if not states:
            raise ConfigError(f"route {args.route} is not in the gate's file; it has {_known(store)}")
        serving = [state for state in states if state.phase == "active"]
        coming = [state for state in states if state.phase not in ENDS and state.phase != "active"]
        old = _chosen(args.route, states, args.old, serving, "active")
        new = _chosen(args.route, states, args.new, coming, "on its way")
        pair = store.revision(args.route, old.revision), store.revision(args.route, new.revision)
    found = list(differences(*pair))
    if args.json:
        print(msgspec.json.encode(found).decode())
    else:
        print_diff(Console(), pair[0], pair[1], found)
    return 0


def _known(store: ReadOnlyStore) -> str:
    return ", ".join(dict.fromkeys(state.route for state in store.states())) or "none"


def _chosen(route: str, states: list[GateState], prefix: str | None, usual: list[GateState], phrase: str) -> GateState:
    """The revision that ``prefix`` names, or the last of the usual ones. Raises ConfigError."""
    if prefix is None:
        if not usual:
            raise ConfigError(f"no revision of route {route} is {phrase}; name one: {_listed(states)}")
        return usual[-1]
    found = [state for state in states if state.revision.startswith(prefix)]
    if len(prefix) < LEAST_PREFIX or len(found) != 1:
        raise ConfigError(f'"{prefix}" names no single revision of route {route}; expected one of: {_listed(states)}')
    return found[0]


def _listed(states: list[GateState]) -> str:
    return ", ".join(f"{state.revision[:12]} ({state.phase})" for state in states)


def _standing(store: ReadOnlyStore, state: GateState) -> Standing:
    rules = rules_for(store.revision(state.route, state.revision).effective())
    fits = state.phase != "canary" or state.step < len(rules.canary)
    return Standing(
        state, state.share(rules) if fits else 0.0, assess(store.evidence(state.route, state.revision), rules)
    )


def differences(old: Revision, new: Revision) -> Iterator[Difference]:
    """Everything that two revisions have otherwise: place, drafters' weights, conditions and settings."""
    sides = [
        dict(_leaves({"position": item.position, "drafters": item.drafters, "match": item.match} | item.settings))
        for item in (old, new)
    ]
    for key in dict.fromkeys(itertools.chain(*sides)):
        before, after = (side.get(key) for side in sides)
        if before != after:
            yield Difference(key, before, after)


def _leaves(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        name = f"{above}.{key}" if above else key
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, name)
        elif item != {}:
            yield name, item


def _entries(store: ReadOnlyStore, after: int) -> Iterator[AuditEntry]:
    while page := store.log(after=after, limit=PAGE):
        yield from page
        after = page[-1].seq


def _store(args: argparse.Namespace) -> ReadOnlyStore:
    """The gate's file. Raises ConfigError where it is not there, StoreDamaged where it is something else."""
    config = load_start_config(config_file(args, os.environ), os.environ, flag_settings(args))
    path: Path = args.db or Path(config.state.path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; expected the gate's, which a server makes (--db FILE)")
    return ReadOnlyStore(path)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value
