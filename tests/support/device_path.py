"""The GPU's path through the engine, run on a CPU by the kernels' torch references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from specproxy.config.schema import DrafterConfig
from specproxy.engine import warmup
from specproxy.models import loading
from specproxy.models.device import DeviceModel
from tests.support.driver import Driver
from tests.support.engines import Engines

FEW = {"STEP_ROWS": (1, 8), "CHAIN_ROWS": (1, 2), "ROUND_LENGTHS": (1, 2), "REPEATS": 1}
"""Of what is measured at start: what things cost decides nothing in tests."""


def use_device_path(patch: pytest.MonkeyPatch) -> None:
    """Models of the Llama family load as they do on a GPU. Their kernels are references: Triton's interpreter, which
    checks kernels elsewhere, takes seconds for a step."""
    patch.setenv("TRITON_INTERPRET", "0")

    def on_device(stock: Any, spec: Any, group: Any) -> DeviceModel:
        return DeviceModel(stock, spec, group)

    patch.setattr(loading, "_fused", on_device)


@contextmanager
def device_driver(cache_home: Path, drafters: Mapping[str, DrafterConfig]) -> Iterator[Driver]:
    """The house model on the GPU's path, with rounds, in float32, every width allowed."""
    engines = Engines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        use_device_path(patch)
        for name, few in FEW.items():
            patch.setattr(warmup, name, few)
        yield engines.build(dict(drafters), dtype="float32", exactness="numeric")
    engines.close()
