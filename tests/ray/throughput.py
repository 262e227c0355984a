"""Tokens per second of the application by its number of replicas: ``python -m tests.ray.throughput [1 2]``.

Each number of replicas gets a cluster of its own, engines of one thread, and twelve clients that ask one question after
another; what the first seconds bring is not counted.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

from tests.conftest import REPOSITORY, server_environment, wait_until
from tests.ray.conftest import START_S, free_port

CLIENTS = 12
WARM_S = 8.0
MEASURED_S = 40.0
ANSWER_TOKENS = 96


def measure(replicas: int) -> float:
    """Completion tokens per second of all clients together."""
    with tempfile.TemporaryDirectory() as folder:
        port, log = free_port(), Path(folder) / "log"
        command = [sys.executable, "-m", "tests.ray.cluster", str(port), f"replicas={replicas}", "cpus=0.5"]
        command += ["model.threads=1", f"state.path={folder}/gate.db", f"policies={REPOSITORY}/policies"]
        command += ["log.level=warning"]
        env = server_environment() | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        with log.open("wb") as output:
            cluster = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=env)
        try:
            wait_until(lambda: b"\nready\n" in log.read_bytes(), START_S, "the cluster")
            return _asked(f"http://127.0.0.1:{port}")
        finally:
            cluster.communicate()


def _asked(url: str) -> float:
    ends: list[tuple[float, int]] = []
    stop = time.monotonic() + WARM_S + MEASURED_S

    def client(number: int) -> None:
        turn = 0
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
            while time.monotonic() < stop:
                turn += 1
                message = {"role": "user", "content": f"Client {number}, turn {turn}: tell me of a town by the sea."}
                body = {"model": "house", "messages": [message], "max_tokens": ANSWER_TOKENS, "ignore_eos": True}
                answer = http.post("/v1/chat/completions", json=body | {"temperature": 0}).raise_for_status()
                ends.append((time.monotonic(), answer.json()["usage"]["completion_tokens"]))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(tokens for end, tokens in ends if stop - MEASURED_S <= end < stop) / MEASURED_S


if __name__ == "__main__":
    for count in sys.argv[1:] or ("1", "2"):
        print(f"{count} replica(s): {measure(int(count)):.0f} tokens/s", flush=True)
