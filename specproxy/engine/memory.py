"""Measures a device's memory, and what a target and its drafters take of it, for the plan (``memory_plan.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from specproxy.config.schema import EngineConfig
from specproxy.drafters.base import Drafter
from specproxy.drafters.held import held_bytes
from specproxy.engine.capture import step_shapes
from specproxy.engine.drafter_sizes import HEADS, DrafterSize, TargetSize, drafter_size
from specproxy.engine.memory_plan import MIB, DeviceMemory, MemoryPlan, Reserves, check_settled, on_gpu, plan_memory
from specproxy.engine.runner import Rules
from specproxy.engine.step_shapes import WIDTHS, StepShape, short_reach
from specproxy.models.base import ModelSpec, StepModel, query_group

LAUNCHES = 10
"""Kernels of a layer in a captured step, at most."""

LAUNCH_BYTES = 8192
"""Set aside for each kernel of a captured step; what captures do take is measured."""

SAMPLING_BYTES = 24
"""For each logit of a step beside the logit and its copy: scores and masks in float32."""

LIBRARIES = 64 * MIB
"""Workspaces of the libraries that compute prompts."""


def plan_start(config: EngineConfig, model: StepModel, folder: Path, rules: Rules, page_size: int) -> MemoryPlan:
    """The plan for a target that is loaded and drafters that are not. Raises ConfigError or ModelLoadError, with the
    numbers where it does not fit."""
    wanted, spec = config.model, model.spec
    target = TargetSize(spec, folder, held_bytes(model), wanted.grow, page_size)
    sizes = [drafter_size(name, drafter, target) for name, drafter in config.drafters.items()]
    types = [drafter.type for drafter in config.drafters.values()]
    heads = sum(one in HEADS for one in types)
    in_rounds = 1 + heads + sum(one in ("draft_model", "layer_skip") for one in types)
    shapes = step_shapes(rules, (), query_group(model), short_reach(spec.max_len, page_size), wanted.max_sequences)
    reserves = Reserves(0, 0)
    if on_gpu(spec.device):
        # The plain steps, those that give each head its states, as many that nobody foresees, and the rounds.
        graphs = (heads + 2 + in_rounds) * graph_bytes(shapes, spec) if spec.path_kind == "device" else 0
        reserves = Reserves(graphs, workspace_bytes(model, rules.prefill_rows))
    known = [size for size in sizes if size is not None]
    return plan_memory(wanted, spec, read_memory(spec.device), target.weights, known, reserves, page_size)


def settle(plan: MemoryPlan, drafters: Mapping[str, Drafter], captured: int) -> MemoryPlan:
    """The plan as it came out, with all that was measured. Raises ModelLoadError where too little is left."""
    planned = {size.name: size for size in plan.drafters}
    sizes = []
    for name, drafter in drafters.items():
        size, held = planned.get(name), drafter.memory()
        if size is not None:
            sizes.append(size.measured(held.weights))
        elif any(held):
            sizes.append(DrafterSize(name, held.weights + held.kv, 0, "measured"))
    settled = plan.settled(sizes, captured, read_memory(plan.device).free)
    check_settled(settled)
    return settled


def graph_bytes(shapes: list[StepShape], spec: ModelSpec) -> int:
    """What capturing ``shapes`` is expected to take: each keeps its logits, and one set of activations serves all."""
    logits = sum(shape.logits for shape in shapes) * spec.vocab_size * spec.dtype.itemsize
    return logits + len(shapes) * len(spec.layers) * LAUNCHES * LAUNCH_BYTES


def workspace_bytes(model: StepModel, prefill_rows: int) -> int:
    """What a prompt chunk of so many rows, or the sampling of the widest step, takes for itself."""
    spec, config = model.spec, model.config
    inner = int(getattr(config, "intermediate_size", None) or 4 * spec.hidden_size)
    chunk = prefill_rows * (8 * spec.hidden_size + 3 * inner) * spec.dtype.itemsize
    sampling = WIDTHS[-1] * spec.vocab_size * (2 * spec.dtype.itemsize + SAMPLING_BYTES)
    return chunk + sampling + LIBRARIES


def read_memory(device: str) -> DeviceMemory:
    """What the device has, and what could be allocated now."""
    if on_gpu(device):
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(total, free)
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return DeviceMemory(*(int(facts[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable")))
