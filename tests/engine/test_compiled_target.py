"""The target's C++ step computes the model, a row's bits depend on its own sequence alone, and where there can be no
such step the eager loop serves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from specproxy.config.schema import ModelConfig
from specproxy.engine import numerics
from specproxy.engine.step import Step, prefill_step
from specproxy.engine.threads import Threads
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from specproxy.models import library
from specproxy.models.base import FINAL, StepModel
from specproxy.models.loading import load_model
from specproxy.models.native import NativeModel, native_model
from tests.engine.test_identity import HEAD_CASES
from tests.support.driver import Driver
from tests.support.engines import HOUSE_HEADS
from tests.support.identity import Identity

PAGE = 64
PROMPTS = (40, 200, 130, 63)
"""Tokens in the pages of four sequences: inside the first page, at its end, and further on."""

PARENTS = [-1, -1, 0, 1, 1, 2, 4, 0]

HOUSE = Path(__file__).parents[2] / "specproxy" / "models" / "house" / "target"
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 48, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 48},
}


@pytest.fixture(scope="module", autouse=True)
def _cache(cache_home: Path) -> Iterator[None]:
    """Compile once for all tests; no gradients, one thread."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        torch.set_num_threads(1)
        yield


def compiled(model: StepModel) -> NativeModel:
    """Its twin with a compiled step; skips with the reason where this machine cannot have one."""
    told: list[str] = []
    native = native_model(model, told.append)
    if native is None:
        pytest.skip(told[-1])
    return native


def tokens(sequence: int) -> list[int]:
    """A sequence's tokens."""
    return torch.randint(0, 8192, (320,), generator=torch.Generator().manual_seed(sequence)).tolist()


def table(sequence: int) -> list[int]:
    """Pages of a sequence, not one behind the other."""
    return [2 + (sequence + 5 * i) for i in range(5)]


def chains(lengths: dict[int, int]) -> Step:
    """The next tokens of some sequences."""
    step = Step("decode")
    for sequence, count in lengths.items():
        at = PROMPTS[sequence]
        step.add_chain(tokens(sequence)[at : at + count], at, table(sequence), PAGE, 0)
    return step


class Running:
    """A model and the pages of four prompts, which it wrote."""

    def __init__(self, model: StepModel) -> None:
        self.model = model
        self.kv = KVBuffers.allocate(model.spec.layers, 30, PAGE, model.spec.dtype, "cpu")
        for sequence, length in enumerate(PROMPTS):
            for base in range(0, length, 128):
                end = min(base + 128, length)
                self.run(prefill_step(tokens(sequence), base, base, end, table(sequence), self.kv, 128))

    def run(self, step: Step, hidden: Sequence[int] = ()) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits and states."""
        plan = plan_attention(step.spans, torch.tensor(step.slots), self.kv)
        ids, positions = torch.tensor(step.ids), torch.tensor(step.positions)
        return self.model.forward(ids, positions, plan, self.kv, torch.tensor(step.sample), hidden)


@pytest.fixture(scope="module")
def house() -> tuple[Running, Running, Running]:
    """The house target compiled, through the loop, and in float32."""
    model, precise = load_model("house")[0], load_model("house", dtype="float32")[0]
    return Running(compiled(model)), Running(model), Running(precise)


def no_further(native: torch.Tensor, loop: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether the compiled step is as near to float32 as the loop is; both round to bf16 on the way."""
    return bool((native.float() - exact).abs().mean() < 1.2 * (loop.float() - exact).abs().mean())


@pytest.mark.parametrize(
    "lengths", [{0: 1}, {1: 1}, {3: 2}, {2: 9}, {0: 1, 1: 1, 2: 1, 3: 1}, {0: 2, 1: 5, 3: 2}, {2: 50, 0: 14}], ids=str
)
def test_the_compiled_step_computes_the_model(house: tuple[Running, Running, Running], lengths: dict[int, int]) -> None:
    """Logits and tapped states, of rows that cross a page's end, of one and of several sequences."""
    native, loop, exact = (running.run(chains(lengths), (3, FINAL)) for running in house)
    assert no_further(native[0], loop[0], exact[0])
    for states in zip(native[1], loop[1], exact[1], strict=True):
        assert no_further(*states)


def test_a_row_has_the_same_bits_in_every_company(house: tuple[Running, Running, Running]) -> None:
    """Alone, in a chain, in a tree, beside others, with one thread and with two: logits and states are equal."""
    native = house[0]
    states: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    tree = Step("decode")
    root, *drafted = tokens(1)[200 : 200 + len(PARENTS) + 1]
    tree.add_tree(root, drafted, PARENTS, 200, table(1), PAGE)
    for step in (chains({1: 1}), chains({1: 7}), chains({0: 6, 1: 1, 3: 20}), tree):
        row = step.ids.index(root)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            some, (state,) = native.run(step, [5])
            logits.append(some[row])
            states.append(state[row])
    torch.set_num_threads(1)
    assert all(torch.equal(one, logits[0]) for one in logits)
    assert all(torch.equal(one, states[0]) for one in states)


@pytest.mark.parametrize("kind", FAMILIES)
def test_other_families_compute_the_model(kind: str, tmp_path: Path) -> None:
    """Biases, norms of queries and keys, sliding windows of some layers and of all."""
    torch.manual_seed(7)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    rest = {"vocab_size": 8192, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 512}
    config = transformers.AutoConfig.for_model(kind, **sizes, **rest, **FAMILIES[kind], eos_token_id=2)
    stock = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.12)
    stock.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(HOUSE / name, tmp_path / name)
    model = load_model(str(tmp_path), dtype="bfloat16")[0]
    runs = [Running(m) for m in (compiled(model), model, load_model(str(tmp_path), dtype="float32")[0])]
    native, loop, exact = (running.run(chains({0: 2, 1: 5, 2: 1}))[0] for running in runs)
    assert no_further(native, loop, exact)


@pytest.fixture(scope="module")
def driver(assemble_engine: Callable[..., Driver]) -> Driver:
    """The house model with a compiled step, its drafters, and heads and trees."""
    if library.native_library(lambda what: None) is None:
        pytest.skip("this machine cannot have a compiled step")
    return assemble_engine(HOUSE_HEADS)


def test_the_self_test_proves_as_much_as_of_the_loop(driver: Driver, assemble_engine: Callable[..., Driver]) -> None:
    """The verdicts differ in their fingerprint and in the path alone."""
    other = assemble_engine(HOUSE_HEADS, compile="off")
    ours, loop = driver.assembled.numerics, other.assembled.numerics
    assert (ours.path, loop.path) == ("native", "fused")
    assert ours.fingerprint != loop.fingerprint
    assert ours.exactness == loop.exactness == "bitwise"
    rules, eager = driver.engine.runner.rules, other.engine.runner.rules
    assert (rules.trees, rules.one_provenance, rules.trim) == (eager.trees, eager.one_provenance, eager.trim)
    assert set(eager.widths) <= set(rules.widths)


@pytest.mark.parametrize("number", range(0, len(HEAD_CASES), 9))
def test_speculation_changes_nothing_in_the_loop_either(
    assemble_engine: Callable[..., Driver], mini: list[dict[str, Any]], number: int
) -> None:
    """Where nothing is compiled, token ids, logprobs, finish reason and usage equal those of plain decoding too."""
    records = [mini[(number * 7 + i * 11) % len(mini)] for i in range(4)]
    identity = Identity(assemble_engine(HOUSE_HEADS, compile="off"))
    assert identity.mismatches(HEAD_CASES[number], records) == []


class Faulty(NativeModel):
    """Its logits depend on where in the step a row stands."""

    def forward(self, *rest: Any, **more: Any) -> Any:
        """See StepModel.forward."""
        logits, states = super().forward(*rest, **more)
        return logits + 0.25 * torch.arange(len(logits))[:, None], states


def test_a_step_that_proves_less_does_not_serve(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test runs on the compiled step; where that fails it, the loop serves, and the reason is told."""
    model = load_model("house")[0]
    code = library.native_library(lambda what: None)
    assert code is not None
    faulty = Faulty(model.stock, model.spec, code)  # type: ignore[attr-defined]
    faulty.spec = replace(faulty.spec, build="faulty")
    monkeypatch.setattr(numerics, "native_model", lambda *_: faulty)
    told: list[str] = []
    serves, rules = numerics.proven_path(model, PAGE, Threads(1, 1), ModelConfig(), told.append)
    assert serves is model
    assert rules.exactness == "bitwise"
    assert "eager loop" in rules.detail
    assert any("proved less" in what for what in told)


def test_without_a_compiler_the_loop_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reason is told, and nothing is raised."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(library, "NEEDED", ())
    told: list[str] = []
    assert library.native_library(told.append) is None
    assert len(told) == 1
    assert "no C++ compiler" in told[0]


def test_a_failed_compilation_is_told_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where there is no compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr(library, "NEEDED", ())
    told: list[str] = []
    assert library.native_library(told.append) is None
    assert "could not be compiled" in told[-1]
    assert list((tmp_path / "specproxy").iterdir()) == []


def test_a_processor_without_the_instructions_runs_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is written for products of bf16 pairs."""
    monkeypatch.setattr(library, "NEEDED", ("avx1024_bf16",))
    told: list[str] = []
    assert library.native_library(told.append) is None
    assert "avx1024_bf16" in told[0]


def test_other_types_of_numbers_are_not_compiled() -> None:
    """A float32 model runs through the loop, and nobody is told, as nothing is wrong."""
    told: list[str] = []
    assert native_model(load_model("house", dtype="float32")[0], told.append) is None
    assert told == []
