"""A small model's decode step as one compiled call, for models whose step is dispatch and not arithmetic.

Thirty small operations a layer cost a draft model of 3 M parameters more than its products do. torch's ahead-of-time
compiler turns the lean layer loop (``fused.py``, with ``RowAttention``) into one library of C++ loops around the same
products: a step of one row takes 0.47 instead of 0.97 ms, of eight sequences 1.07 instead of 1.98 (house draft model
at 280 tokens, one thread of an AMD EPYC Zen 4, medians of one run). It needs a C++ compiler, and half a minute in a
process of its own; the result is kept for the next start. Without one everything works as before.

Compiled code may round differently from the loop it was made of, so it is for drafters: a draft only guesses. It is for
processors without bf16 instructions; those that have them run everything in ``native.py``.

Shapes: T rows, P pages a row, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from specproxy.kernels import explicit, paged, row_attention
from specproxy.kernels.paged import KVBuffers
from specproxy.models import compiler, fused, linear
from specproxy.models.base import StepModel
from specproxy.models.compiler import MAX_ROWS, MIN_PAGES, MIN_ROWS
from specproxy.models.fused import FusedModel
from specproxy.models.machine import cache_folder, cpu_identity

MOST_BYTES = 256 * 2**20
"""Weights beyond which a step is arithmetic: compiling would take long and gain little."""

TIMEOUT_S = 600.0


class CompiledStep:
    """Runs up to ``max_rows`` rows over ``kv``; every row is a lane of its own (``RowAttention``)."""

    max_rows = MAX_ROWS

    def __init__(self, library: Path, kv: KVBuffers) -> None:
        # torch's public loader imports the whole compiler: a second, and memory that is never used again.
        self._loaded: Any = torch._C._aoti.AOTIModelPackageLoader(str(library), "model", True, 1, -1)  # noqa: SLF001
        self._kv = kv

    def __call__(
        self, ids: list[int], positions: list[int], slots: list[int], tables: Sequence[Sequence[int]]
    ) -> Tensor:
        """Logits [T, V] of rows ``ids``, ``positions``, whose KV goes to ``slots``. ``tables``: each row's pages."""
        rows = len(ids)
        missing = max(0, MIN_ROWS - rows)
        width = max(MIN_PAGES, max(positions) // self._kv.page_size + 1)
        pages = [[*table[:width], *[0] * (width - len(table))] for table in tables] + [[0] * width] * missing
        logits: Tensor = self._loaded.run(
            [
                torch.tensor(ids + [0] * missing),
                torch.tensor(positions + [0] * missing),
                torch.tensor(slots + [self._kv.trash_slot] * missing),
                torch.tensor(pages),
                *self._kv.layers,
            ]
        )[0]
        return logits[:rows]


def compiled_step(
    path: str, dtype: str, model: StepModel, kv: KVBuffers, progress: Callable[[str], None]
) -> CompiledStep | None:
    """The compiled step of ``model`` (loaded from ``path``), made now if there is none yet; ``None`` where there can be
    none, with the reason told to ``progress``. Its loops run on as many CPU threads as torch uses now."""
    if not isinstance(model, FusedModel) or model.spec.device != "cpu" or model.bytes() > MOST_BYTES:
        return None
    threads = torch.get_num_threads()
    library = cache_folder() / f"step-{_fingerprint(model, kv.page_size, threads)}.pt2"
    if not library.is_file():
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            progress(f"{path}: no C++ compiler (g++), so its steps are not compiled; drafting takes longer")
            return None
        progress(f"compiling the steps of {path} for this processor (once, about half a minute)")
        problem = _compile(path, dtype, kv.page_size, threads, library)
        if problem:
            progress(f"{path}: its steps could not be compiled, so drafting takes longer: {problem}")
            return None
    try:
        return CompiledStep(library, kv)
    except (RuntimeError, AttributeError, TypeError) as error:  # the loader is not public: another torch may differ
        progress(f"{path}: {library} cannot be loaded, so drafting takes longer: {error}")
        return None


def _compile(path: str, dtype: str, page_size: int, threads: int, library: Path) -> str:
    """Compile in a process of its own, whose memory goes with it; why not, or an empty text."""
    command = [sys.executable, "-m", "specproxy.models.compiler", path, dtype, str(page_size), str(threads)]
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=library.parent, prefix="compiling-") as folder:
            out = Path(folder) / library.name
            done = subprocess.run(
                [*command, str(out)],
                env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode != 0:
                lines = done.stderr.strip().splitlines()
                return lines[-1] if lines else f"the compiler ended with {done.returncode}"
            out.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


def _fingerprint(model: FusedModel, page_size: int, threads: int) -> str:
    """Identity of what a library was made of: weights, processor, torch, and the source that was traced."""
    spec = model.spec
    traced = (explicit, paged, row_attention, fused, linear, compiler)
    sources = [Path(str(module.__file__)).read_bytes() for module in traced]
    facts = [
        cpu_identity(),
        str(torch.__version__),
        spec.fingerprint,
        str(spec.dtype),
        spec.max_len,
        page_size,
        threads,
        hashlib.sha256(b"".join(sources)).hexdigest(),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
