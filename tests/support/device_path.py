"""The GPU's path through the engine, run on a CPU by the kernels' torch references."""

from __future__ import annotations

from typing import Any

import pytest

from specproxy.models import loading
from specproxy.models.device import DeviceModel


def use_device_path(patch: pytest.MonkeyPatch) -> None:
    """Models of the Llama family load as they do on a GPU. Their kernels are references: Triton's interpreter, which
    checks kernels elsewhere, takes seconds for a step."""
    patch.setenv("TRITON_INTERPRET", "0")

    def on_device(stock: Any, spec: Any, group: Any) -> DeviceModel:
        return DeviceModel(stock, spec, group)

    patch.setattr(loading, "_fused", on_device)
