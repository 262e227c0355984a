"""``python -m specproxy.engine.ranks``: a rank of a sharded target, started by rank 0 (``leader.py``)."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection

import msgspec

from specproxy.config.schema import ModelConfig

PR_SET_PDEATHSIG = 1
"""Linux prctl(2): the signal to get when the parent dies. Elsewhere a rank ends when its pipe closes."""


def cli() -> int:
    """Parse the command line and run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parser = argparse.ArgumentParser(prog="specproxy.engine.ranks", description=__doc__)
    parser.add_argument("--config", required=True, help="ModelConfig as JSON")
    parser.add_argument("--rank", required=True, type=int)
    parser.add_argument("--port", required=True, type=int, help="where rank 0 keeps the addresses of all")
    parser.add_argument("--pipe", required=True, type=int, help="file descriptor of the pipe to rank 0")
    arguments = parser.parse_args()
    config = msgspec.json.decode(arguments.config, type=ModelConfig)
    # Read when torch loads libgomp: see ``engine/__main__.py``.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if config.threads != "auto":
        os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    from specproxy.engine.ranks.follower import follow

    return follow(config, arguments.rank, arguments.port, Connection(arguments.pipe))


if __name__ == "__main__":
    sys.exit(cli())
