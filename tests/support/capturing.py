"""Work as the engine captures it, for tests that look at what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from specproxy.engine.graphs import Captured

Result = TypeVar("Result")


def capture(work: Callable[[], Result]) -> tuple[Captured, Result]:
    """The captured work, and what it returned when it was: tensors that every replay overwrites."""
    results: list[Result] = []
    captured = Captured(lambda: results.append(work()), torch.cuda.graph_pool_handle())
    return captured, results[-1]
