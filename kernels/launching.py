"""When a kernel runs, and how one begins before the kernel in front of it has ended.

Programmatic dependent launch (CUDA programming guide, "Programmatic Dependent Launch and Synchronization"): a kernel
that is launched so starts while the one before it still drains; what does not depend on it (addresses, the first lines
of a weight) is done then, and ``wait_for_input`` stands before the first read of anything that another kernel of the
step wrote. It is a matter of speed alone: where it is off, the same programs run one behind the other.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor


def interpreted() -> bool:
    """Whether Triton's interpreter runs kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def kernels_run(x: Tensor) -> bool:
    """Whether the Triton form serves ``x``; elsewhere the torch reference does."""
    return x.is_cuda or interpreted()


class Scratch:
    """Memory that launches of one device's stream use one behind the other, by name and type. What was handed out is
    kept even where more is needed later: captured graphs hold its address."""

    _of: dict[torch.device, Scratch] = {}

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: dict[tuple[str, torch.dtype], list[Tensor]] = {}

    @classmethod
    def of(cls, device: torch.device) -> Scratch:
        """The device's."""
        found = cls._of.get(device)
        if found is None:
            found = cls._of[device] = cls(device)
        return found

    def take(self, name: str, numbers: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """At least so many numbers; they were zero when first handed out."""
        parts = self._parts.setdefault((name, dtype), [])
        if not parts or parts[-1].numel() < numbers:
            parts.append(torch.zeros(max(1, numbers), dtype=dtype, device=self._device))
        return parts[-1]


@triton.jit
def let_next_start(EARLY: tl.constexpr):
    """The kernel behind this one may begin; it waits by itself for what this one writes."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_input(EARLY: tl.constexpr):
    """Nothing before this line reads what another kernel writes, nothing before it writes."""
    if EARLY:
        tl.extra.cuda.gdc_wait()


@triton.jit
def fetch_ahead(at, EARLY: tl.constexpr):
    """Bring the lines at these addresses into the second-level cache; nothing is returned."""
    if EARLY:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
        )


def early(x: Tensor) -> dict[str, bool]:
    """Launch options: early where the card can (compute capability 9.0 on)."""
    able = x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if able else {"EARLY": False}
