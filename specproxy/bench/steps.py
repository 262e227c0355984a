"""What a step of the target takes on this device, beside what its memory would allow.

A step of few rows is the reading of every weight once, and of the keys and values of its context: their bytes over the
bandwidth that a plain sum reaches in the same run are the least that it can take. Rows are those of one sequence, as a
verified chain has them. Of a grown target the same step is measured with random weights throughout.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import torch
from msgspec import Struct

from specproxy.bench.field import Grid
from specproxy.bench.roofline import PART_ROWS, PartTime, measure_parts, over_library
from specproxy.bench.session import surroundings
from specproxy.bench.timing import Timing, device_name, find_device, interleaved, make_clock, read_bandwidth, wait_for
from specproxy.config.schema import ModelConfig
from specproxy.engine.assemble import PAGE_SIZE
from specproxy.engine.runner import Rules, Runner
from specproxy.engine.selftest import PREFILL_ROWS
from specproxy.engine.step import Step
from specproxy.engine.threads import Threads
from specproxy.errors import StartError
from specproxy.kernels.paged import KVBuffers
from specproxy.models.fused import FusedModel
from specproxy.models.grown.shapes import find_shape
from specproxy.models.grown.target import random_target
from specproxy.models.loading import load_model
from specproxy.models.native import native_model

ROWS = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 300
"""Tokens before the step, unless another context is asked for too."""
RUNS = {"cuda": 20, "cpu": 5}
"""Runs of each measurement, before repeats."""
FOLLOWING = 6
"""Steps that follow each other unread, to see what the host adds."""
TOKEN = 5
"""What every row reads: which one does not matter for time."""

GROWN, TRAINED, RANDOM = "grown", "as trained", "random"


class StepTime(Struct, frozen=True):
    """Steps of ``rows`` rows behind ``context`` tokens. ``bytes`` that one must read; ``following``: seconds of a step
    among some that follow each other, by the wall clock."""

    weights: str
    context: int
    rows: int
    bytes: int
    time: Timing
    following: float


class Steps(Struct, frozen=True):
    """``bandwidth``: bytes per second that this device reads; ``runs`` of each measurement; ``over_library``: time of a
    step's products over that of the library's, which promises nothing about bits, by rows; empty without a GPU."""

    device: str
    bandwidth: float
    runs: int
    steps: list[StepTime]
    parts: list[PartTime]
    over_library: dict[int, float]
    facts: dict[str, Any]

    def to_json(self) -> str:
        """One line."""
        return msgspec.json.encode(self).decode()


def measurements(config: ModelConfig, contexts: Sequence[int]) -> int:
    """How often ``done`` will be called."""
    return len(contexts) * (2 if config.grow else 1) + 2


def measure_all(config: ModelConfig, contexts: Sequence[int], repeats: int, done: Callable[[str], None]) -> Steps:
    """Steps at all contexts, then the parts of a step one by one; ``done`` hears of each. ``repeats``: of as many runs
    as the device needs. Raises StartError."""
    facts = surroundings()
    device = find_device(config.device)
    runs = repeats * RUNS["cuda" if device.startswith("cuda") else "cpu"]
    bandwidth = read_bandwidth(device)
    done("memory bandwidth")
    with torch.no_grad():
        measure = partial(_measure_contexts, contexts=sorted(contexts), config=config, runs=runs, done=done)
        found, model = measure(partial(load_target, config), GROWN if config.grow else TRAINED)
        kind, shape, spec = type(model), model.config, model.spec
        del model
        gc.collect()
        if config.grow:
            # One behind the other: two large targets need not fit the device.
            found += measure(lambda: kind(_random_stock(config), spec), RANDOM)[0]
        Threads.choose(config.threads).enter(max(PART_ROWS))
        parts = measure_parts(shape, spec, contexts, runs)
    done("parts of a step")
    return Steps(device_name(device), bandwidth, runs, found, parts, over_library(parts, len(spec.layers)), facts)


def load_target(config: ModelConfig) -> FusedModel:
    """The target without its engine. Raises StartError."""
    if config.tensor_parallel > 1:
        raise StartError("--steps measures one device; leave model.tensor_parallel out")
    model, _ = load_model(config.path, dtype=config.dtype, device=config.device, grow=config.grow)
    if not isinstance(model, FusedModel):
        raise StartError(f"--steps: {config.path} has no layer loop of ours; expected a model of the Llama family")
    return model


def step_bytes(model: FusedModel, rows: int, context: int) -> int:
    """Bytes of weights and of keys and values that a step reads; of an embedding that is not the output matrix too,
    only a row for each token, which is left out."""
    embedding = 0
    if not model.config.tie_word_embeddings:
        embedding = model.spec.vocab_size * model.spec.hidden_size * model.spec.dtype.itemsize
    keys = sum(layer.width for layer in model.spec.layers) * model.spec.dtype.itemsize
    return model.bytes() - embedding + (context + rows) * keys


def _random_stock(config: ModelConfig) -> Any:
    small = load_target(msgspec.structs.replace(config, grow=""))
    return random_target(small.stock, find_shape(config.grow), small.spec.device, small.spec.dtype)


def _measure_contexts(
    make: Callable[[], FusedModel],
    weights: str,
    contexts: Sequence[int],
    config: ModelConfig,
    runs: int,
    done: Callable[[str], None],
) -> tuple[list[StepTime], FusedModel]:
    """Steps behind ``contexts`` tokens, ascending, and the model. It goes where it was not trained to go: time does not
    depend on what a text means."""
    model, found, threads = make(), list[StepTime](), Threads.choose(config.threads)
    for context in contexts:
        if context + max(ROWS) > model.spec.max_len:
            kind, stock, spec = type(model), model.stock, replace(model.spec, max_len=context + max(ROWS))
            del model  # its merged weights are freed layer by layer, as the next one merges them
            model = kind(stock, spec)
        served = native_model(model, lambda what: None) if config.compile == "auto" else None
        found += measure_steps(served or model, weights, context, threads, runs)
        done(f"steps, {weights} weights, context {context}")
    return found, model


def measure_steps(model: FusedModel, weights: str, context: int, threads: Threads, runs: int) -> list[StepTime]:
    """Steps of all widths behind ``context`` tokens, as the engine runs them, in turns."""
    pages = -(-(context + max(ROWS)) // PAGE_SIZE)
    first = KVBuffers.RESERVED_PAGES
    kv = KVBuffers.allocate(model.spec.layers, first + pages, PAGE_SIZE, model.spec.dtype, model.spec.device)
    for layer in kv.layers:
        layer.normal_()
    runner = Runner(model, kv, Rules("bitwise", (), max(ROWS), PREFILL_ROWS), threads)
    works = {}
    for rows in ROWS:
        step = Step("decode")
        step.add_chain([TOKEN] * rows, context, list(range(first, first + pages)), PAGE_SIZE, 0)
        works[str(rows)] = partial(runner.run, step)
    times = interleaved(works, make_clock(model.spec.device), runs)
    return [
        StepTime(
            weights,
            context,
            rows,
            step_bytes(model, rows, context),
            times[str(rows)],
            _following(works[str(rows)], model.spec.device),
        )
        for rows in ROWS
    ]


def _following(work: Callable[[], object], device: str) -> float:
    """Seconds of ``work`` where runs follow each other unread."""
    wait_for(device)
    began = time.perf_counter()
    for _ in range(FOLLOWING):
        work()
    wait_for(device)
    return (time.perf_counter() - began) / FOLLOWING


def steps_table(steps: Steps) -> Grid:
    """A row for each kind of weights and context: ms by rows of the step and the share of the least possible time."""
    head = ["weights, context", *(f"{rows} row{'s' if rows > 1 else ''}" for rows in ROWS), "16 rows to 1"]
    head += ["GB read, 1 row", "1 row of those that follow, ms"]
    lines = []
    for weights, context in dict.fromkeys((step.weights, step.context) for step in steps.steps):
        mine = {step.rows: step for step in steps.steps if (step.weights, step.context) == (weights, context)}
        lines.append(
            [
                f"{weights}, {context}",
                *(_cell(mine[rows], steps.bandwidth) for rows in ROWS),
                f"{mine[16].time.median / mine[1].time.median:.3f}",
                f"{mine[1].bytes / 1e9:.3f}",
                f"{mine[1].following * 1e3:.3f}",
            ]
        )
    title = "decode step of one sequence: ms [p10-p90]; the least time that reading its bytes takes, as a share of it"
    return Grid(title, head, lines)


def _cell(step: StepTime, bandwidth: float) -> str:
    median, low, high = (1e3 * seconds for seconds in (step.time.median, step.time.p10, step.time.p90))
    return f"{median:.3f} [{low:.3f}-{high:.3f}]\n{step.bytes / bandwidth / step.time.median:.2f}"
