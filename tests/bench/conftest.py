"""Helpers of the bench's tests: made-up measurements with known answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specproxy.bench.client import Answer
from specproxy.bench.records import Record
from specproxy.bench.runner import Block, Measured


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
