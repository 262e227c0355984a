"""The draft model's compiled step against the loop it was made of, and what happens where nothing can be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from specproxy.models import compiled
from specproxy.models.base import StepModel
from specproxy.models.compiled import CompiledStep, compiled_step
from specproxy.models.loading import load_model

PAGE = 64
CONTEXTS = (40, 200, 130, 63)
"""Tokens before the compared ones, by sequence: inside the first page, at its end, and further on."""


@pytest.fixture(scope="module")
def draft() -> Iterator[tuple[StepModel, KVBuffers]]:
    """The house draft model, with some prompts in its pages."""
    with torch.no_grad():
        model, _ = load_model("house", "draft")
        kv = KVBuffers.allocate(model.spec.layers, 60, PAGE, model.spec.dtype, "cpu")
        for i, context in enumerate(CONTEXTS):
            run(model, kv, [(i, 0, context)])
        yield model, kv


@pytest.fixture(scope="module")
def precise() -> tuple[StepModel, KVBuffers]:
    """The same in float32."""
    with torch.no_grad():
        model, _ = load_model("house", "draft", dtype="float32")
        kv = KVBuffers.allocate(model.spec.layers, 60, PAGE, torch.float32, "cpu")
        for i, context in enumerate(CONTEXTS):
            run(model, kv, [(i, 0, context)])
        return model, kv


@pytest.fixture(scope="module")
def step(draft: tuple[StepModel, KVBuffers], cache_home: Path) -> CompiledStep:
    """Its compiled step: made if no test had one made, and found from then on."""
    model, kv = draft
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        told: list[str] = []
        made = compiled_step("house", "auto", model, kv, told.append)
        assert made is not None, told
        told.clear()
        again = compiled_step("house", "auto", model, kv, told.append)
    assert again is not None
    assert told == []
    return made


def table(sequence: int) -> list[int]:
    """Pages of a sequence, not one behind the other."""
    return [2 + (sequence + 5 * i) for i in range(5)]


def tokens(sequence: int) -> list[int]:
    """A sequence's tokens."""
    generator = torch.Generator().manual_seed(sequence)
    return torch.randint(0, 8192, (320,), generator=generator).tolist()


def rows_of(work: list[tuple[int, int, int]]) -> tuple[list[int], list[int], list[int], list[list[int]], list[Span]]:
    """ids, positions, slots, tables and spans of (sequence, first position, end)."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    tables: list[list[int]] = []
    spans = []
    for sequence, first, end in work:
        pages = table(sequence)
        spans.append(Span(len(ids), end - first, first, pages))
        ids += tokens(sequence)[first:end]
        positions += range(first, end)
        slots += [pages[p // PAGE] * PAGE + p % PAGE for p in range(first, end)]
        tables += [pages] * (end - first)
    return ids, positions, slots, tables, spans


def run(model: StepModel, kv: KVBuffers, work: list[tuple[int, int, int]]) -> torch.Tensor:
    """Logits of all rows through the loop."""
    ids, positions, slots, _, spans = rows_of(work)
    plan = plan_attention(spans, torch.tensor(slots), kv, exact=False)
    return model.forward(torch.tensor(ids), torch.tensor(positions), plan, kv, None)[0]


@pytest.mark.parametrize(
    "lengths",
    [{0: 1}, {1: 1}, {3: 2}, {2: 9}, {0: 1, 1: 1, 2: 1, 3: 1}, {0: 2, 1: 5, 3: 2}, {0: 4, 1: 4, 2: 4, 3: 4}],
    ids=str,
)
@torch.no_grad()
def test_the_compiled_step_is_the_loop(
    draft: tuple[StepModel, KVBuffers],
    precise: tuple[StepModel, KVBuffers],
    step: CompiledStep,
    lengths: dict[int, int],
) -> None:
    """Rows of any sequences, alone or together, across a page's end, are as close to the float32 model as the loop's
    are (both round to bf16 on the way), and leave KV behind with which the next row is too."""
    model, kv = draft
    work = [(s, CONTEXTS[s], CONTEXTS[s] + n) for s, n in lengths.items()]
    after = [(s, end, end + 1) for s, _, end in work]
    loop = [run(model, kv, part).float() for part in (work, after)]
    exact = [run(*precise, part) for part in (work, after)]
    for layer in kv.layers:
        for s, first, end in work:
            layer[:, [table(s)[p // PAGE] * PAGE + p % PAGE for p in range(first, end + 1)]] = 0
    for by_loop, wanted, part in zip(loop, exact, (work, after), strict=True):
        ids, positions, slots, tables, _ = rows_of(part)
        got = step(ids, positions, slots, tables).float()
        assert got.shape == wanted.shape
        assert (got - wanted).abs().mean() < 1.5 * (by_loop - wanted).abs().mean()


def test_without_a_compiler_there_is_no_compiled_step(
    draft: tuple[StepModel, KVBuffers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is told, and nothing is raised."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    told: list[str] = []
    assert compiled_step("house", "auto", *draft, told.append) is None
    assert len(told) == 1
    assert "no C++ compiler" in told[0]


def test_a_failed_compilation_is_told_and_leaves_nothing(
    draft: tuple[StepModel, KVBuffers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafting then goes through the loop."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled.sys, "executable", "/bin/false")
    told: list[str] = []
    assert compiled_step("house", "auto", *draft, told.append) is None
    assert "could not be compiled" in told[-1]
    assert list((tmp_path / "specproxy").iterdir()) == []


def test_large_models_are_not_compiled(draft: tuple[StepModel, KVBuffers], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where arithmetic dominates, compiling would only take long."""
    monkeypatch.setattr(compiled, "MOST_BYTES", 2**20)
    told: list[str] = []
    assert compiled_step("house", "auto", *draft, told.append) is None
    assert told == []
