"""Audits of the house model's answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from specproxy.engine.auditing import make_audits
from tests.support.auditing import Auditing
from tests.support.driver import Driver


@pytest.fixture
def auditing(assemble_engine: Callable[..., Driver]) -> Callable[..., Auditing]:
    """Audits of the house model's answers; options of the model by keyword."""

    def make(**model: Any) -> Auditing:
        driver = assemble_engine(**model)
        return Auditing(driver, make_audits(driver.assembled))

    return make
