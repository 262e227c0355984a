"""A Ray cluster of this machine with the application on it: ``python -m tests.ray.cluster PORT [NAME=VALUE ...]``.

Prints ``ready`` once requests are answered, and ends, with all that it started, when its standard input is closed.
"""

from __future__ import annotations

import sys
import tempfile
import warnings

import ray
from ray import serve

from specproxy.ray_app import app

OBJECT_STORE_BYTES = 80 * 2**20


def main(port: int, args: dict[str, str]) -> None:
    """Serve until standard input is closed."""
    # A short path, as Unix sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=2,
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app(args))
        print("ready", flush=True)
        sys.stdin.read()
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), dict(argument.split("=", 1) for argument in sys.argv[2:]))
