"""The stock pass in chunks, and the measured distance between it and the engine."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from specproxy.audit.stock import CHUNK, StockPass
from specproxy.bundle import Tolerance
from specproxy.engine.tolerance import (
    SAFETY,
    drawn_otherwise,
    known_tolerance,
    measure_at_once,
    measure_tolerance,
)
from tests.audit.test_answers import MODELS
from tests.support.auditing import Auditing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_give_what_one_pass_gives(
    auditing: Callable[..., Auditing], mini: list[dict[str, Any]], dtype: str
) -> None:
    """The logits of every wanted row, whatever the chunks, are those of one forward within the tolerance."""
    engine = auditing(**MODELS[dtype])
    engine.audit(*engine.answers(mini[:1]))  # measures the tolerance
    assert engine.audits.tolerance is not None
    stock, ids, first = engine.driver.engine.runner.model.stock, (mini[0]["ids"] * 5)[:200], 70
    with torch.no_grad():
        whole = stock(input_ids=torch.tensor([ids]), use_cache=False).logits[0, first:].float()
    for chunk in (CHUNK, 7, 200):
        part = StockPass(stock, ids, first, chunk)
        rows = []
        while not part.done:
            rows.append(part.step())
            assert len(rows[-1]) <= chunk
        found = torch.cat(rows)
        assert found.shape == whole.shape
        assert float((found - whole).abs().max()) <= engine.audits.tolerance.eps


def test_the_tolerance_is_measured_in_pieces_and_kept(
    auditing: Callable[..., Auditing], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No piece is more than a step or a chunk; the result is the largest difference times the safety factor, and the
    next start finds it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    driver = auditing().driver
    runner, host = driver.engine.runner, driver.assembled.host
    assert known_tolerance(runner) is None
    pieces = 0

    def counted() -> Generator[None, None, Tolerance]:
        nonlocal pieces
        measurement = measure_tolerance(runner, host.target.folder, host.vocab_size, host.page_size)
        while True:
            try:
                next(measurement)
            except StopIteration as end:
                found: Tolerance = end.value
                return found
            pieces += 1
            yield

    found = measure_at_once(counted())
    assert pieces > found.positions == found.compared_greedy > 200
    assert found.eps == SAFETY * found.largest > 0
    assert known_tolerance(runner) == found
    assert found.ties_sampled < 0.05 * found.compared_sampled


@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.0), ("bfloat16", 0.1)])
def test_the_stock_model_differs_from_itself_only_by_rounding(
    auditing: Callable[..., Auditing], mini: list[dict[str, Any]], dtype: str, most: float
) -> None:
    """In chunks of another length it draws the same tokens in float32, and in bf16 nearly all; never other ones in
    chunks of the same length."""
    engine = auditing(**MODELS[dtype])
    bundles = engine.answers(mini[:6], temperature=1.0)
    for bundle in bundles:
        assert drawn_otherwise(engine.audits.target, bundle, CHUNK) == 0
    differing = sum(drawn_otherwise(engine.audits.target, bundle, 7) for bundle in bundles)
    assert differing <= most * sum(len(bundle.output) for bundle in bundles)
