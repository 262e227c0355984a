"""Captured steps on a card: what is captured at start serves what runs, gives its bits, and its memory is known."""

from __future__ import annotations

import pytest
import torch

from specproxy.config.schema import DrafterConfig, EngineConfig, ModelConfig
from specproxy.engine.assemble import Assembled, assemble
from specproxy.engine.memory_plan import MIB
from specproxy.engine.runner import Rules, Runner
from specproxy.engine.step import Step, prefill_step
from specproxy.engine.threads import Threads
from specproxy.kernels.paged import KVBuffers
from specproxy.models.base import FINAL, StepModel
from specproxy.models.loading import load_model

CHUNK, PAGE = 128, 64
HIDDEN = (FINAL, 1)
RULES = {
    "trimmed": Rules("numeric", (), 64, CHUNK, trim=16),
    "whole": Rules("bitwise-fixed", (16,), 16, CHUNK),
}

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
    rounds = assembled.engine.rounds
    assert rounds is not None
    assert float(line.split()[2]) == pytest.approx((assembled.captures.bytes + rounds.graphs.bytes) / MIB, abs=1)
    assert min(assembled.captures.bytes, rounds.graphs.bytes) > 0
    assert float(told[-1].split()[1]) > 0


def test_the_runner_takes_the_captured_graphs(started: tuple[Assembled, list[str]]) -> None:
    """What the runner captures when it occurs is one more of those that were captured at start."""
    assembled, _ = started
    graphs, runner = assembled.captures.graphs, assembled.engine.runner
    assert graphs is not None
    before = len(graphs)
    runner.run(chains(assembled, [1]), HIDDEN)
    assert len(graphs) == before + 1


def test_ordinary_chunks_capture_nothing_more(started: tuple[Assembled, list[str]]) -> None:
    """Chunks of a short prompt, whole and trimmed, run on what was captured at start."""
    assembled, _ = started
    graphs, runner = assembled.captures.graphs, assembled.engine.runner
    needs = assembled.engine.drafting.drafters["eagle3"].needs
    assert graphs is not None
    before = len(graphs)
    for hidden in ((), tuple(sorted(needs.hidden))):
        for start, end in ((0, 1), (0, 40), (0, CHUNK), (CHUNK, CHUNK + 77), (CHUNK + 77, CHUNK + 90)):
            logits, taps = runner.run(chunk(runner, start, end), hidden)
            assert logits.shape[0] == 1
            assert len(taps) == len(hidden)
    assert len(graphs) == before


@pytest.fixture(scope="module")
def tiny() -> StepModel:
    """A small Llama in bf16 on the card."""
    return load_model("house", "target", dtype="bfloat16", device="cuda")[0]


def chunk(runner: Runner, start: int, end: int) -> Step:
    """The prompt chunk of positions ``start`` to ``end``, of made-up tokens, on pages from 2 on."""
    rules, vocab = runner.rules, runner.model.spec.vocab_size
    tokens, table = [(37 * i + 11) % vocab for i in range(end)], list(range(2, 3 + end // PAGE))
    return prefill_step(tokens, start - start % CHUNK, start, end, table, runner.kv, CHUNK, rules.trim)


class Twins:
    """The same target twice, with KV of its own each: with captured steps and launch by launch."""

    def __init__(self, model: StepModel, rules: Rules) -> None:
        self.captured, self.eager = (self._runner(model, rules) for _ in range(2))
        self.eager._graphs = None

    @staticmethod
    def _runner(model: StepModel, rules: Rules) -> Runner:
        spec = model.spec
        pages = KVBuffers.RESERVED_PAGES + spec.max_len // PAGE + 4
        kv = KVBuffers.allocate(spec.layers, pages, PAGE, spec.dtype, spec.device)
        return Runner(model, kv, rules, Threads(1, 1))

    @property
    def graphs(self) -> int:
        """How many were captured."""
        assert self.captured._graphs is not None
        return len(self.captured._graphs)

    def same(self, start: int, end: int, hidden: tuple[int, ...]) -> bool:
        """Whether a chunk leaves the same logits, states of its tokens, and keys and values of the prompt so far."""
        step = chunk(self.captured, start, end)
        ours, theirs = (runner.run(step, hidden) for runner in (self.captured, self.eager))
        rows = slice(start - step.positions[0], end - step.positions[0])
        slots = slice(2 * PAGE, 2 * PAGE + end)
        pairs = [(ours[0], theirs[0]), *((a[rows], b[rows]) for a, b in zip(ours[1], theirs[1], strict=True))]
        layers = zip(self.captured.kv.layers, self.eager.kv.layers, strict=True)
        pairs += [(a[:, slots], b[:, slots]) for a, b in layers]
        assert len(ours[1]) == len(hidden)
        assert all(bool(torch.isfinite(a).all()) for a, _ in pairs)
        return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("hidden", [(), HIDDEN])
@pytest.mark.parametrize("kind", list(RULES))
def test_a_captured_chunk_is_the_chunk(tiny: StepModel, kind: str, hidden: tuple[int, ...]) -> None:
    """Whole and trimmed, at the start of a prompt and behind some of it, a chunk has the same bits as launch by
    launch, when its graph is captured and when it is used again."""
    with torch.no_grad():
        twins = Twins(tiny, RULES[kind])
        for start, end in ((0, CHUNK), (CHUNK, 2 * CHUNK), (2 * CHUNK, 3 * CHUNK)):
            assert twins.same(start, end, hidden)
        assert twins.graphs == 1
        base = 3 * CHUNK
        for end in range(16, CHUNK, 16):
            assert twins.same(base, base + end - 3, hidden)
        assert twins.same(base + 50, base + 60, hidden)
        assert twins.same(base, base + CHUNK, hidden)
        assert twins.graphs == (8 if kind == "trimmed" else 1)


def test_decode_behind_captured_chunks_is_the_same(tiny: StepModel) -> None:
    """A decode step reads what chunks wrote, captured or not, to the same bits."""
    with torch.no_grad():
        twins = Twins(tiny, RULES["trimmed"])
        assert twins.same(0, CHUNK, ())
        assert twins.same(CHUNK, CHUNK + 30, ())
        step = Step("decode")
        step.add_chain([5, 6, 7], CHUNK + 30, [2, 3, 4], PAGE, 0)
        assert torch.equal(twins.captured.run(step)[0], twins.eager.run(step)[0])


def test_scored_prompts_are_not_captured(tiny: StepModel) -> None:
    """A chunk whose logits are wanted at many rows runs launch by launch, and writes the keys and values that a
    captured one does."""
    with torch.no_grad():
        twins = Twins(tiny, RULES["trimmed"])
        step = chunk(twins.captured, 0, CHUNK)
        step.sample = list(range(CHUNK))
        logits, _ = twins.captured.run(step)
        assert logits.shape[0] == CHUNK
        assert twins.graphs == 0
        written = [layer.clone() for layer in twins.captured.kv.layers]
        twins.captured.run(chunk(twins.captured, 0, CHUNK))
        assert twins.graphs == 1
        slots = slice(2 * PAGE, 2 * PAGE + CHUNK)
        layers = zip(written, twins.captured.kv.layers, strict=True)
        assert all(torch.equal(a[:, slots], b[:, slots]) for a, b in layers)
