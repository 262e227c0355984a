"""Whether a drafter that comes while the engine runs has room: the target's KV was allocated without it."""

from __future__ import annotations

from dataclasses import dataclass

from specproxy.config.schema import DrafterConfig, ModelConfig
from specproxy.engine.capture import step_shapes
from specproxy.engine.drafter_sizes import HEADS, TargetSize, drafter_size
from specproxy.engine.memory import graph_bytes
from specproxy.engine.memory_plan import MIB, MemoryPlan, on_gpu
from specproxy.engine.runner import Rules
from specproxy.engine.step_shapes import short_reach
from specproxy.errors import ModelLoadError
from specproxy.models.base import StepModel, query_group

IN_ROUNDS = ("draft_model", "layer_skip")
"""Drafters beside heads that have captured rounds of their own."""


@dataclass(frozen=True)
class LateRoom:
    """What drafters are measured by. ``plan``: as it came out at the start; ``graphs``: bytes that capturing one set of
    the usual steps takes, 0 where nothing is captured."""

    plan: MemoryPlan
    target: TargetSize
    graphs: int

    @classmethod
    def of(cls, plan: MemoryPlan, target: TargetSize, model: StepModel, rules: Rules, wanted: ModelConfig) -> LateRoom:
        """The room of an engine that has started."""
        spec = model.spec
        if not on_gpu(spec.device) or spec.path_kind != "device":
            return cls(plan, target, 0)
        reach = short_reach(spec.max_len, plan.page_size)
        shapes = step_shapes(rules, (), query_group(model), reach, wanted.max_sequences)
        return cls(plan, target, graph_bytes(shapes, spec))

    def check(self, name: str, config: DrafterConfig, free: int) -> None:
        """Raise ModelLoadError, with the numbers, where ``free`` bytes of the device do not hold the drafter, its KV of
        as many pages as the target's, and its captured steps. What nobody can tell beforehand counts as nothing."""
        plan, size = self.plan, drafter_size(name, config, self.target)
        weights = 0 if size is None else size.weights
        kv = 0 if size is None else plan.drafter_kv(size)
        # A head has steps that give it its states, and rounds.
        captured = self.graphs * (2 if config.type in HEADS else 1 if config.type in IN_ROUNDS else 0)
        needed = weights + kv + captured
        kept = plan.total - plan.budget + plan.reserves.graphs + plan.reserves.workspace
        left = max(0, free - kept)
        if needed > left:
            raise ModelLoadError(
                f"drafters.{name}: needs {needed / MIB:.0f} MB of {plan.device} (weights {weights / MIB:.0f}, KV "
                f"{kv / MIB:.0f}, captured steps {captured / MIB:.0f}), and {left / MIB:.0f} MB are left there: "
                f"{plan.total / MIB:.0f} MB in all, {free / MIB:.0f} free, {kept / MIB:.0f} of it kept for steps and "
                "by model.memory_share; unload another drafter, or start with a lower model.kv_memory"
            )
