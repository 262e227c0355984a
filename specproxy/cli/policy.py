"""``specproxy policy``: check, explain and test policy files; print the language's JSON Schema; ask the gate."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import msgspec
from rich.console import Console

from specproxy.cli.policy_admin import add_admin_actions
from specproxy.cli.policy_gate import add_gate_actions
from specproxy.cli.policy_view import print_explanation, print_findings, print_outcomes
from specproxy.config.flags import add_config_flags, config_file, flag_settings
from specproxy.config.load import load_start_config
from specproxy.errors import ConfigError
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.explain import explain
from specproxy.policy.junit import junit_xml
from specproxy.policy.policy import PolicySet
from specproxy.policy.request_file import Envelope, read_request
from specproxy.policy.schema import json_schema
from specproxy.policy.testing import run_tests

EPILOG = """\
examples:
  specproxy policy check policies
  specproxy policy explain policies --request request.json --header 'x-specproxy-speculate: off'
  specproxy policy test policies --junit results.xml
  specproxy policy schema > policies/policy.schema.json
  specproxy policy plan candidate --requests requests.jsonl
  specproxy policy status
  specproxy policy promote structured --reason "faster since Tuesday"

Drafters and upstreams are the ones of the start configuration: pass --config, or the flags that serve gets."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its own subcommands."""
    parser = subparsers.add_parser(
        "policy",
        help="check, explain and test policy files; see and move the gate's candidates",
        description="Check, explain and test policy files, without a server; see and move the gate's candidates.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser("check", help="errors, warnings and notes; exit code 1 where there are errors")
    check.set_defaults(run=_check)
    asked = actions.add_parser("explain", help="which route takes a request, why, and what that decides")
    asked.add_argument(
        "--request", metavar="FILE.json", type=Path, required=True, help="a request body, or an envelope"
    )
    asked.add_argument("--path", default="", help="path of the request; default: what fits the body")
    asked.add_argument("--header", metavar="'NAME: VALUE'", action="append", default=[], help="a header of the request")
    asked.add_argument("--api-key", metavar="ID", default="", help="id of the key that it comes with")
    asked.add_argument("--prompt-tokens", metavar="N", type=int, help="length of its prompt")
    asked.add_argument("--load", metavar="N", type=int, default=0, help="queue depth")
    asked.set_defaults(run=_explain)
    test = actions.add_parser("test", help="run DIR/tests/*.yaml; exit code 1 where an expectation fails")
    test.add_argument("--junit", metavar="FILE.xml", type=Path, help="also write the outcomes as JUnit's XML, for CI")
    test.set_defaults(run=_test)
    for action in (check, asked, test):
        action.add_argument("directory", metavar="DIR", type=Path, help="directory of policy files")
        action.add_argument("--json", action="store_true", help="for machines")
        add_config_flags(action)
    schema = actions.add_parser("schema", help="the JSON Schema of a policy file, for editors")
    schema.set_defaults(run=_schema)
    add_gate_actions(actions)
    add_admin_actions(actions)


def _check(args: argparse.Namespace) -> int:
    policies, findings = PolicySet.read(args.directory, _catalogue(args))
    print_findings(Console(), policies, findings, as_json=args.json)
    return 0 if policies is not None else 1


def _explain(args: argparse.Namespace) -> int:
    policies = _load(args)
    explanation = explain(policies, _envelope(args).facts())
    if args.json:
        print(msgspec.json.encode(explanation).decode())
    else:
        print_explanation(Console(), explanation)
    return 0


def _test(args: argparse.Namespace) -> int:
    outcomes = run_tests(args.directory, _load(args))
    if not outcomes:
        raise ConfigError(f"{args.directory}: has no tests; expected {args.directory / 'tests'}/*.yaml")
    if args.junit is not None:
        _write(args.junit, junit_xml(outcomes))
    print_outcomes(Console(), outcomes, as_json=args.json)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def _schema(args: argparse.Namespace) -> int:
    print(schema_text(), end="")
    return 0


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None


def schema_text() -> str:
    """The schema as the file in the repository has it."""
    return msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode() + "\n"


def _load(args: argparse.Namespace) -> PolicySet:
    return PolicySet.load(args.directory, _catalogue(args))


def _catalogue(args: argparse.Namespace) -> Catalogue:
    config = load_start_config(config_file(args, os.environ), os.environ, flag_settings(args))
    return Catalogue.from_config(config)


def _envelope(args: argparse.Namespace) -> Envelope:
    """The request of the file, with what the flags say of it."""
    envelope = read_request(args.request)
    for text in args.header:
        name, colon, value = text.partition(":")
        if not colon:
            raise ConfigError(f"--header: expected 'NAME: VALUE', got {text}")
        envelope.headers[name.strip()] = value.strip()
    envelope.path = args.path or envelope.path
    envelope.api_key = args.api_key or envelope.api_key
    envelope.load = args.load or envelope.load
    if args.prompt_tokens is not None:
        envelope.prompt_tokens = args.prompt_tokens
    return envelope
