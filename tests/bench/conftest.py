"""Helpers of the bench's tests: made-up measurements with known answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specproxy.bench.client import Answer
from specproxy.bench.records import Record
from specproxy.bench.runner import Block, Measured

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make_measured() -> Callable[..., Measured]:
    """Builds the measurement of a block with one answer."""

    def build(
        arm: str,
        number: int,
        seconds: float,
        *,
        tokens: int = 10,
        repeat: int = 0,
        category: str = "json",
        **answer: object,
    ) -> Measured:
        record = Record(f"{category}-{number}", category, {"messages": []}, seed=1)
        said: dict[str, object] = {"tokens": tokens, "token_ids": list(range(tokens)), "finish_reason": "stop"}
        one = Answer(**(said | {"ttft_s": 0.01, "total_s": seconds} | answer))  # type: ignore[arg-type]
        return Measured(Block(number, category, (record,), repeat), arm, seconds, (one,))

    return build


@pytest.fixture
def run_bench() -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Runs the command in a process of its own: exit code, the JSON line, what a person sees."""

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        command = [sys.executable, "-m", "specproxy", "bench", *arguments, "--set", "model.threads=1"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.stdout.count("\n") == 1, done.stderr
        return done.returncode, json.loads(done.stdout), done.stderr

    return run
