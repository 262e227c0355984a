"""``specproxy audit``: compute a stored answer again with the stock model, and say whether it is this model's."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specproxy.bundle import AuditBundle, AuditResult, Finding, Tolerance, read_bundle
from specproxy.config.flags import add_config_flags, config_file, flag_settings
from specproxy.config.load import load_start_config
from specproxy.config.schema import ModelConfig
from specproxy.errors import InvalidRequest, StartError

DESCRIPTION = """\
Check a stored answer without a server. FILE is an audit bundle: one served answer with its prompt, token
ids, seed and parameters, as the admin API hands it out.

The stock transformers model reads prompt and answer in one pass, with its own attention and cache and
nothing of the engine's. At every position the token is drawn again from its logits, the parameters and the
seed, and compared with the served one; then the way the answer ended is checked.

  identical   every token is the recomputed one
  explained   some are not, but logits that differ by no more than eps would give the served ones: near-ties,
              which rounding decides. eps is 1.5 times the largest difference between the engine's logits and
              the stock model's on texts that the model writes itself, measured once for this machine
  hard        some token cannot come from this model, these parameters and this seed, or the answer ended
              where or how it had no reason to: a bug, or a changed file"""

EPILOG = """\
examples:
  specproxy audit answer.json
  specproxy audit answer.json --json | jq .verdict
  specproxy audit answer.json --model /models/llama --device cuda
  specproxy audit answer.json --eps 0.5          an answer of a machine whose rounding is another one

The target is the configured one: pass --config, or the flags that serve gets. One with another fingerprint
than the bundle's is refused.

exit codes: 0 identical or explained, 1 hard mismatch, 2 the answer could not be checked"""

OK, MISMATCH, NOT_CHECKED = 0, 1, 2
_STYLES = {"identical": "bold green", "explained": "bold yellow", "hard": "bold red"}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "audit",
        help="compute a stored answer again and compare it",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="an audit bundle (JSON)")
    parser.add_argument("--json", action="store_true", help="the result for machines")
    parser.add_argument("--eps", metavar="X", type=_eps, help="difference of raw logits to allow; default: measured")
    add_config_flags(parser)
    parser.set_defaults(run=_run)


def _eps(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, got {text}")
    return value


def _run(args: argparse.Namespace) -> int:
    try:
        bundle = read_bundle(args.file)
        config = load_start_config(config_file(args, os.environ), os.environ, flag_settings(args))
        result = _audit(bundle, config.model, args.eps)
    except InvalidRequest as error:
        print(f"specproxy: {args.file}: {error.message}", file=sys.stderr)
        return NOT_CHECKED
    except StartError as error:
        print(f"specproxy: {error}", file=sys.stderr)
        return NOT_CHECKED
    if args.json:
        print(msgspec.json.encode(result).decode())
    else:
        print_result(Console(), bundle, result)
    return MISMATCH if result.verdict == "hard" else OK


def _audit(bundle: AuditBundle, config: ModelConfig, eps: float | None) -> AuditResult:
    """Load the target and run the audit to its end. Raises InvalidRequest, ModelLoadError."""
    from specproxy.audit.job import AuditJob
    from specproxy.engine.auditing import offline_target

    target, tolerance = offline_target(config, _tell, fingerprint=bundle.fingerprint, measured=eps is None)
    if tolerance is None:
        tolerance = Tolerance(eps or 0.0, eps or 0.0, 0.0, 0, 0, 0, 0, 0)
    began = time.monotonic()
    job = AuditJob(target, bundle, tolerance)
    while not job.step():
        pass
    return job.result(time.monotonic() - began)


def _tell(what: str) -> None:
    if sys.stderr.isatty():
        print(f"  {what}", file=sys.stderr, flush=True)


def print_result(console: Console, bundle: AuditBundle, result: AuditResult) -> None:
    """The answer, what was found of it, the verdict."""
    facts = Table("", "", show_header=False)
    for name, value in _facts(bundle, result).items():
        facts.add_row(name, escape(value))
    console.print(facts)
    if result.findings:
        table = Table(
            "position", "served", "score", "recomputed", "score", "", title="differences", title_justify="left"
        )
        for finding in result.findings:
            table.add_row(*map(escape, _row(finding)), style="" if finding.explained else "red")
        console.print(table)
        left = result.explained + result.hard - len(result.findings)
        if left:
            console.print(f"and {left} more", highlight=False)
    counts = f"{result.tokens} tokens checked, {result.explained} explained, {result.hard} hard"
    console.print(f"[{_STYLES[result.verdict]}]{result.verdict}[/]: {counts}", highlight=False)


def _facts(bundle: AuditBundle, result: AuditResult) -> dict[str, str]:
    served, eps = bundle.numerics, result.tolerance.eps if result.tolerance else 0.0
    sampling = f"temperature {bundle.params.temperature:g}, seed {bundle.seed}, choice {bundle.choice}"
    return {
        "request": bundle.request_id,
        "route": f"{bundle.route}, revision {bundle.revision[:12]}, drafters {', '.join(bundle.drafters) or 'none'}",
        "tokens": f"prompt {len(bundle.prompt)}, answer {len(bundle.output)}, ended by {bundle.finish_reason}",
        "sampling": sampling,
        "served by": f"{served.path} path, {served.dtype} on {served.device}, torch {served.torch}",
        "eps": f"{eps:.3g}",
    }


def _row(finding: Finding) -> tuple[str, ...]:
    said = finding.text or ("near-tie" if finding.explained else "cannot be")
    expected = "" if finding.expected is None else str(finding.expected)
    scores = ["" if score is None else f"{score:.4f}" for score in (finding.served_score, finding.expected_score)]
    return str(finding.position), str(finding.served), scores[0], expected, scores[1], said
