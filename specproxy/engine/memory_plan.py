"""Who gets how much of a device's memory, decided before the KV is allocated.

In this order: what is there already, the target's weights, the drafters' weights, captured graphs, what a step works
with. KV of the target, and of the drafters that have as many pages, takes the rest: on a GPU all of it, up to the share
of the card that may be used; on a CPU, where others live too, half of the free memory at most. Never more than full
length for every sequence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from specproxy.config.schema import ModelConfig
from specproxy.engine.drafter_sizes import DrafterSize
from specproxy.errors import ConfigError, ModelLoadError
from specproxy.kernels.paged import KEY_BLOCK, KVBuffers
from specproxy.models.base import ModelSpec

AUTO_SHARE = 0.5
"""Of a CPU's free memory at most this share becomes the target's KV by default; drafters, activations, the server and
whatever else runs there need the rest."""

MIB = 2**20
_UNITS = {"": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device: all, and what could be allocated now."""

    total: int
    free: int


@dataclass(frozen=True)
class Reserves:
    """Bytes set aside for a GPU's captured graphs and for what a step works with."""

    graphs: int
    workspace: int


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one device. ``total``: all it has; ``share``: what of it may be used. ``others``: held by whatever else
    there is: the driver's context, libraries, other processes. ``weights``: the target's. ``captured``: graphs, as
    measured; ``reserves``: for graphs yet to be captured, and workspace. ``pages``: of KV, reserved ones included, of
    ``page_size`` tokens with ``per_token`` bytes of the target's each; drafters with KV have as many."""

    device: str
    total: int
    share: float
    others: int
    weights: int
    drafters: tuple[DrafterSize, ...]
    captured: int
    reserves: Reserves
    pages: int
    page_size: int
    per_token: int

    @property
    def budget(self) -> int:
        """What may be used, in all."""
        return int(self.total * self.share)

    @property
    def kv(self) -> int:
        """KV of the target."""
        return self._slots * self.per_token

    @property
    def fixed(self) -> int:
        """All that does not depend on the number of pages."""
        held = self.others + self.weights + sum(drafter.weights for drafter in self.drafters)
        return held + self.captured + self.reserves.graphs + self.reserves.workspace

    @property
    def free(self) -> int:
        """What is left of the budget; below 0 where the plan does not fit."""
        return self.budget - self.fixed - self.kv - sum(self.drafter_kv(drafter) for drafter in self.drafters)

    @property
    def tokens(self) -> int:
        """Tokens that have room at a time."""
        return max(0, self.pages - KVBuffers.RESERVED_PAGES) * self.page_size

    @property
    def _slots(self) -> int:
        return self.pages * self.page_size + KEY_BLOCK

    def drafter_kv(self, drafter: DrafterSize) -> int:
        """KV of one of the drafters."""
        return self._slots * drafter.per_token if drafter.per_token else 0

    def lines(self) -> list[str]:
        """The plan as a table, a line a part, in MiB."""
        rows = [("held by others", self.others, ""), ("weights", self.weights, "")]
        rows += [(f"drafter {d.name}", d.weights + self.drafter_kv(d), _BASIS[d.basis]) for d in self.drafters]
        if on_gpu(self.device):
            rows.append(("captured steps", self.captured, "measured"))
            rows.append(("further steps", self.reserves.graphs, "reserve"))
            rows.append(("workspace", self.reserves.workspace, "reserve"))
        rows.append(("KV", self.kv, f"{self.pages} pages, {self.tokens} tokens"))
        rows.append(("free", self.free, f"of {self.budget // MIB} MB that may be used"))
        width = max(len(label) for label, _, _ in rows)
        head = f"memory of {self.device}: {self.total // MIB} MB, used up to {self.share:g} of it"
        table = [f"  {label:<{width}} {size / MIB:>9.0f} MB  {note}".rstrip() for label, size, note in rows]
        return [head, *table]

    def settled(self, drafters: Sequence[DrafterSize], captured: int, free: int) -> MemoryPlan:
        """The plan with what was measured behind loading: ``free`` bytes of the device now, so that what others hold
        is the rest. Of the graphs' reserve remains what was not used up."""
        reserves = replace(self.reserves, graphs=max(0, self.reserves.graphs - captured))
        plan = replace(self, drafters=tuple(drafters), captured=captured, reserves=reserves, others=0)
        ours = plan.fixed - reserves.graphs - reserves.workspace + plan.kv
        ours += sum(plan.drafter_kv(drafter) for drafter in plan.drafters)
        return replace(plan, others=max(0, self.total - free - ours))


_BASIS = {"files": "as its files say", "reserve": "reserve", "measured": "measured"}


def parse_bytes(value: int | str) -> int:
    """A number, or text such as 512MB, 2GB or 1000000, in bytes. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(KB|MB|GB)?\s*", str(value).upper().replace("IB", "B"))
    if match is None:
        raise ConfigError(f"model.kv_memory: {value!r}; expected auto, a number of bytes, or text such as 512MB or 2GB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def plan_memory(
    config: ModelConfig,
    spec: ModelSpec,
    memory: DeviceMemory,
    weights: int,
    drafters: Sequence[DrafterSize],
    reserves: Reserves,
    page_size: int,
) -> MemoryPlan:
    """The plan of a target of ``weights`` bytes that is loaded, for drafters that are not.

    Raises ConfigError for a kv_memory that is no number, ModelLoadError with the numbers where not even one sequence of
    full length has room, or where what was asked for does not fit.
    """
    per_token = sum(layer.width for layer in spec.layers) * spec.dtype.itemsize
    plan = MemoryPlan(
        device=spec.device,
        total=memory.total,
        share=config.memory_share if on_gpu(spec.device) else 1.0,
        others=max(0, memory.total - memory.free - weights),
        weights=weights,
        drafters=tuple(drafters),
        captured=0,
        reserves=reserves,
        pages=0,
        page_size=page_size,
        per_token=per_token,
    )
    per_sequence = -(-spec.max_len // page_size)
    room = _room(config, plan, memory)
    pages = room // (per_token * page_size)
    if config.kv_memory == "auto":
        pages = min(config.max_sequences * per_sequence, pages)
    if pages < per_sequence:
        _refuse_short(plan, spec.max_len, per_sequence, max(0, room), config.kv_memory == "auto")
    plan = replace(plan, pages=pages + KVBuffers.RESERVED_PAGES)
    if plan.free < 0:
        raise ModelLoadError(
            f"memory of {plan.device}: {plan.budget / MIB:.0f} MB may be used, {(plan.budget - plan.free) / MIB:.0f} "
            f"MB are needed; {_ADVICE}\n" + "\n".join(plan.lines())
        )
    return plan


_ADVICE = "lower model.max_model_len, model.max_sequences or model.kv_memory, or leave drafters out"


def _room(config: ModelConfig, plan: MemoryPlan, memory: DeviceMemory) -> int:
    """Bytes for the target's KV, the reserved pages apart."""
    if config.kv_memory != "auto":
        return parse_bytes(config.kv_memory) - KEY_BLOCK * plan.per_token
    if not on_gpu(plan.device):
        return int(memory.free * AUTO_SHARE)
    # A page costs as much as it takes in the target and in every drafter; the target's part of the rest is its share.
    every = plan.per_token + sum(drafter.per_token for drafter in plan.drafters)
    spare = KVBuffers.RESERVED_PAGES * plan.page_size + KEY_BLOCK
    return ((plan.budget - plan.fixed) // every - spare) * plan.per_token


def _refuse_short(plan: MemoryPlan, max_len: int, pages: int, room: int, auto: bool) -> None:
    need = pages * plan.page_size * plan.per_token
    key = "model.memory_share" if auto and on_gpu(plan.device) else "model.kv_memory"
    raise ModelLoadError(
        f"KV for one sequence of {max_len} tokens needs {need / MIB:.0f} MB, available are {room / MIB:.0f} MB; lower "
        f"model.max_model_len or raise {key}\n" + "\n".join(plan.lines())
    )


def check_settled(plan: MemoryPlan) -> None:
    """Raise ModelLoadError where drafters and graphs left too little of the device for steps to run."""
    needed = plan.budget - plan.free
    if on_gpu(plan.device) and needed > plan.total:
        raise ModelLoadError(
            f"memory of {plan.device}: {needed / MIB:.0f} MB are needed now that all is loaded, {plan.total / MIB:.0f} "
            f"MB are there; lower model.memory_share, {_ADVICE.removeprefix('lower ')}\n" + "\n".join(plan.lines())
        )


def on_gpu(device: str) -> bool:
    """Whether memory is a card's own, to be used up."""
    return device.startswith("cuda")
