"""Kernels run in Triton's interpreter here: it has to be chosen before triton is imported.

It multiplies bf16 matrices as if their bits were integers, so half precision is float16 here; bf16 is for the card
(``tests/gpu``).
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
