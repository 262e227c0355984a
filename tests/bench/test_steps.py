"""What a step reads, and how it is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from specproxy.bench import steps
from specproxy.bench.session import surroundings
from specproxy.bench.steps import ROWS, Steps, _measure_contexts, load_target, measure_steps, steps_table
from specproxy.config.schema import ModelConfig
from specproxy.engine.runner import NUMERIC, Runner
from specproxy.engine.step import Step
from specproxy.engine.threads import Threads
from specproxy.errors import StartError
from specproxy.kernels.paged import KVBuffers

ONE = Threads(1, 1)


def logits_of(model: Any) -> torch.Tensor:
    """Of four tokens at the beginning."""
    kv = KVBuffers.allocate(model.spec.layers, 3, 64, model.spec.dtype, "cpu")
    step = Step("decode")
    step.add_chain([5, 6, 7, 8], 0, [2], 64, 0)
    with torch.no_grad():
        return Runner(model, kv, NUMERIC, ONE).run(step)[0]


def test_a_longer_context_changes_the_tables_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """For timing the rotary tables reach beyond what the model was trained for; what it says before is the same."""
    monkeypatch.setattr(steps, "ROWS", (1, 4))
    usual = load_target(ModelConfig(threads=1))
    with torch.no_grad():
        config = ModelConfig(threads=1, compile="off")
        found, longer = _measure_contexts(lambda: usual, "as trained", [40, 2100], config, 1, lambda what: None)
    assert usual.spec.max_len < longer.spec.max_len == 2100 + 4
    assert [(step.context, step.rows) for step in found] == [(40, 1), (40, 4), (2100, 1), (2100, 4)]
    assert torch.equal(logits_of(longer), logits_of(usual))


def test_steps_of_every_width_are_timed_and_shown() -> None:
    """A cell a width: milliseconds, spread, and the share of the least time. What a step reads: 10 layers of a width of
    384, their keys and values, and the output of 8192, which is the embedding too."""
    model = load_target(ModelConfig(threads=1))
    with torch.no_grad():
        found = measure_steps(model, "as trained", 40, ONE, 2)
    assert [step.rows for step in found] == list(ROWS)
    assert all(step.time.median > 0 and step.time.runs == 2 and step.following > 0 for step in found)
    layer = 384 * (640 + 384 + 2048 + 1024) + 2 * 384
    assert found[1].bytes == 2 * (10 * layer + 384 + 384 * 8192) + 42 * 10 * 2 * (2 * 2 * 64)
    bandwidth = found[0].bytes / found[0].time.median / 0.5
    (line,) = steps_table(Steps("", bandwidth, 2, found, [], {}, surroundings())).rows
    assert line[0] == "as trained, 40"
    assert line[1].endswith("\n0.50")


def test_what_has_no_layer_loop_is_refused() -> None:
    """A target in transformers' own module, and one spread over devices, are not what is measured."""
    with pytest.raises(StartError, match="one device"):
        load_target(ModelConfig(tensor_parallel=2))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_measures_steps_and_parts(run_bench: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    """A grown target is measured beside random weights; every part of its step has bytes, a time and a share. Of its
    embedding, which is not its output, a step reads a row for each token: that is left out."""
    code, report, shown = run_bench("--steps", "--scale", "tiny-8b", "--json", "--markdown")
    assert code == 0, shown
    read = {(step["weights"], step["context"]): step["bytes"] for step in report["steps"] if step["rows"] == 1}
    layer = 448 * (3072 + 2048 + 3 * 1568) + 2 * 448
    weights, token = 2 * (12 * layer + 448 + 448 * 10240), 12 * 2 * (2 * 4 * 128)
    assert read == {(kind, at): weights + (at + 1) * token for kind, at in (("grown", 300), ("random", 300))}
    assert report["bandwidth"] > 1e8
    names = {part["name"].split(",")[0].split(" ")[0] for part in report["parts"]}
    assert names == {"qkv", "o", "down", "head", "gate", "norm", "attention", "draw"}
    assert all(part["bytes"] > 0 and part["time"]["median"] > 0 for part in report["parts"])
    assert "| grown, 300 |" in shown
    assert "| attention, 300 tokens |" in shown
    assert "cost-scaled: house in the shape of tiny-8b" in shown
