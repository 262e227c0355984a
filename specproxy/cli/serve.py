"""``specproxy serve``: start the engine, then everything else, and say when requests are answered."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from specproxy.config.flags import add_config_flags, config_file, flag_settings
from specproxy.config.keys import load_keys
from specproxy.config.load import check_bind, load_start_config
from specproxy.config.schema import StartConfig
from specproxy.server.capture_files import claim_folder
from specproxy.server.launch import Launch, launch

if TYPE_CHECKING:
    from specproxy.policy.watch import PolicyStore
    from specproxy.wire.frames import Hello

DESCRIPTION = """\
Load a target model and its drafters, and answer OpenAI-compatible requests on http://HOST:PORT/v1.

Without options it serves the bundled house model with its drafters and the policies in ./policies, on the
loopback interface. Point any OpenAI SDK at it by changing base_url."""

EPILOG = """\
examples:
  specproxy serve
  specproxy serve --model Qwen/Qwen3-4B --drafter draft=draft_model:Qwen/Qwen3-0.6B --drafter ngram=ngram
  specproxy serve --model /models/llama --policies /etc/specproxy/policies --port 9000
  specproxy serve --host 0.0.0.0 --keys-file keys.txt --log-format json
  specproxy serve --capture /var/lib/specproxy/answers
  specproxy serve --config specproxy.yaml --set server.max_queue=64 --set server.drain_s=60

a drafter is NAME=TYPE or NAME=TYPE:PATH; NAME is what policies call it. Types: ngram, suffix, prediction,
draft_model, eagle3, eagle, mtp, medusa, layer_skip.
--capture DIR keeps prompts and answers for training drafters. Without it nothing is kept. With it, only requests whose
route has capture: on are, and of these not the ones that send the header x-specproxy-no-capture, fail or are aborted.
  stored   messages or prompt, answer, token ids, sampling parameters, stop strings, seed, model, route, revision,
           finish reason and time; no headers, keys, user ids or metadata; what people write into a prompt stands there
  where    DIR/capture-DATE-TIME-NUMBER.jsonl, plain text, which only this user may read
  how long until capture.max_mb (default 1024) is full, then the oldest file goes; delete files whenever you like
  off      capture: off on the route, for every request from then on, or a start without DIR

SIGHUP reloads the policies (so does saving one), SIGTERM drains, a second one stops at once.
GET /ready says what is loaded and how exact it is, GET /metrics is for Prometheus."""

ERASE = "\r\x1b[2K"
"""Terminal codes: back to the start of the line, and clear it."""

PROGRESS_WIDTH = 100


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "serve",
        help="load a model and answer requests",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. Raises StartError."""
    config = load_start_config(config_file(args, os.environ), os.environ, flag_settings(args))
    keys = load_keys(config.keys, os.environ)
    check_bind(config, has_keys=len(keys) > 0)
    if config.capture.dir:
        claim_folder(Path(config.capture.dir))
    started = launch(config)
    try:
        # Imported only now: it takes half a second, in which the engine is already loading.
        from specproxy.server.main import run_server

        return run_server(started, keys, Terminal(config, sys.stderr))
    finally:
        started.close()


class Terminal:
    """Tells a person how far the start is: one line that rewrites itself on a terminal, and a banner at the end.

    Where the log is JSON nothing else may be written, so the end of the start is a log line there.
    """

    def __init__(self, config: StartConfig, out: TextIO) -> None:
        self._model = config.model.path
        self._json = config.log.format == "json"
        self._out = out

    def loading(self, elapsed_s: float, phase: str) -> None:
        """Rewrite the progress line, where there is a terminal."""
        if self._out.isatty() and not self._json:
            self._out.write(f"{ERASE}  loading {self._model} … {elapsed_s:4.1f} s  {phase}"[:PROGRESS_WIDTH])
            self._out.flush()

    def ready(self, launch: Launch, hello: Hello, policies: PolicyStore, elapsed_s: float) -> None:
        """The banner, or the log line."""
        facts = describe(launch, hello, policies, elapsed_s)
        if self._json:
            import structlog

            structlog.get_logger().info("ready", **facts)
            return
        erase = ERASE if self._out.isatty() else ""
        self._out.write(f"{erase}\n" + "".join(f"  {name:<10} {text}\n" for name, text in facts.items()) + "\n")
        self._out.flush()


def describe(launch: Launch, hello: Hello, policies: PolicyStore, elapsed_s: float) -> dict[str, str]:
    """What is served where, and how."""
    numerics, capture = hello.numerics, launch.config.capture
    drafters = ", ".join(f"{d.name} ({d.type}, K ≤ {d.max_k})" for d in hello.drafters)
    facts = {
        "url": launch.url,
        "model": f"{hello.model.name} · {numerics.dtype} on {numerics.device} · context {hello.model.max_model_len}",
        "drafters": drafters or "none: nothing is drafted",
        "exactness": f"{numerics.exactness} (rows {_span(numerics.widths)})",
        "policies": f"{launch.config.policies} · revision {policies.current.hash[:12]}",
        "ready in": f"{elapsed_s:.1f} s",
    }
    if capture.dir:
        routes = ", ".join(route.name for route in policies.current.routes if route.captures is True)
        facts["capture"] = f"{capture.dir} · up to {capture.max_mb} MiB · routes: {routes or 'none'}"
    return facts


def _span(widths: list[int]) -> str:
    return f"{min(widths)} to {max(widths)}" if len(widths) > 1 else ", ".join(map(str, widths))
