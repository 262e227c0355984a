"""``python -m specproxy.engine --config JSON``: the engine process, started by the server."""

from __future__ import annotations

import argparse
import os
import sys
import time

import msgspec

from specproxy.config.schema import EngineConfig


def cli() -> int:
    """Parse the command line and run."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="specproxy.engine", description=__doc__)
    parser.add_argument("--config", required=True, help="EngineConfig as JSON")
    config = msgspec.json.decode(parser.parse_args().config, type=EngineConfig)
    if config.model.threads != "auto":
        os.environ.setdefault("OMP_NUM_THREADS", str(config.model.threads))
    from specproxy.engine.process import main

    return main(config, started)


if __name__ == "__main__":
    sys.exit(cli())
