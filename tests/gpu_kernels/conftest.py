"""Kernels run in Triton's interpreter here (``tests/conftest.py`` chooses it).

It multiplies bf16 matrices as if their bits were integers, so half precision is float16 here; bf16 is for the card
(``tests/gpu``).
"""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _interpreted() -> None:
    """Beside a card kernels are compiled, and take no tensors of the CPU."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("kernels are compiled here: tests/gpu tests them on the card")
