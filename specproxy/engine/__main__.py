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
    # Read when torch loads libgomp. Its threads spin between products, by default for so long that on busy cores they
    # wait for each other's time slices: decoding fell from 270 to 9 tokens/s on contended cores. With a count of 2000
    # they sleep between products, which costs a step of 8 rows an eighth; 20000 is as fast as the default (two cores).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    config = msgspec.json.decode(parser.parse_args().config, type=EngineConfig)
    if config.model.threads != "auto":
        os.environ.setdefault("OMP_NUM_THREADS", str(config.model.threads))
    from specproxy.engine.process import main

    return main(config, started)


if __name__ == "__main__":
    sys.exit(cli())
