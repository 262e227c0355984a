"""Captured steps on a card: what is captured at start serves what runs, and its memory is known."""

from __future__ import annotations

import pytest
import torch

from specproxy.config.schema import DrafterConfig, EngineConfig, ModelConfig
from specproxy.engine.assemble import Assembled, assemble
from specproxy.engine.memory_plan import MIB
from specproxy.engine.step import Step

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def started() -> tuple[Assembled, list[str]]:
    """The house target on the card with a head, and what its start told."""
    told: list[str] = []
    config = EngineConfig(
        socket="",
        model=ModelConfig(device="cuda", dtype="bfloat16", max_sequences=4),
        drafters={"eagle3": DrafterConfig(type="eagle3", path="house"), "ngram": DrafterConfig(type="ngram")},
    )
    return assemble(config, told.append), told


def chains(assembled: Assembled, counts: list[int]) -> Step:
    """A decode step of chains of so many rows, on pages of their own."""
    step = Step("decode")
    for i, count in enumerate(counts):
        step.add_chain([7 + i] * count, 0, [2 + i], assembled.engine.runner.kv.page_size, 0)
    return step


@pytest.mark.parametrize("counts", [[1], [5], [9], [1, 1, 1], [6, 6, 6, 6], [16, 1, 3]])
def test_ordinary_steps_capture_nothing_more(started: tuple[Assembled, list[str]], counts: list[int]) -> None:
    """Chains of one sequence and of several run on what was captured at start, with a head's states and without."""
    assembled, _ = started
    graphs, needs = assembled.captures.graphs, assembled.engine.drafting.drafters["eagle3"].needs
    assert graphs is not None
    before = len(graphs)
    for hidden in ((), tuple(sorted(needs.hidden))):
        logits, taps = assembled.engine.runner.run(chains(assembled, counts), hidden)
        assert logits.shape[0] == sum(counts)
        assert len(taps) == len(hidden)
        assert bool(torch.isfinite(logits).all())
    assert len(graphs) == before


def test_padding_changes_no_bit(started: tuple[Assembled, list[str]]) -> None:
    """A row's logits are the same in every captured width and beside any others."""
    runner = started[0].engine.runner
    alone = runner.run(chains(started[0], [1]))[0][0].clone()
    for counts in ([5], [13], [33], [1, 5, 7], [1, 1, 1, 1]):
        assert torch.equal(runner.run(chains(started[0], counts))[0][0], alone)


def test_the_plan_says_what_captures_took(started: tuple[Assembled, list[str]]) -> None:
    """The table at start has the measured bytes, and the parts do not exceed what the card has."""
    assembled, told = started
    line = next(line for line in told if line.split()[:2] == ["captured", "steps"])
    assert float(line.split()[2]) == pytest.approx(assembled.captures.bytes / MIB, abs=1)
    assert assembled.captures.bytes > 0
    assert float(told[-1].split()[1]) > 0
