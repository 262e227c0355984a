"""The house target and what it is grown into, made once."""

from __future__ import annotations

import pytest
import torch

from tests.grown.running import Lean, grown, house


@pytest.fixture(scope="session")
def small() -> Lean:
    """The house target, float64."""
    return Lean(house("target", torch.float64))


@pytest.fixture(scope="session", params=["tiny-8b", "tiny-70b"])
def large(request: pytest.FixtureRequest) -> tuple[str, Lean]:
    """The name of a shape, and the house target grown into it, float64."""
    return request.param, Lean(grown("target", request.param, torch.float64))
