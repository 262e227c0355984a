"""The C++ step (``cpp/``): compiled once for this processor with the system's compiler, loaded with ctypes.

The structures mirror those of ``cpp/products.h``, ``cpp/attention.h`` and ``cpp/step.cpp``, which say what each field
is. They hold addresses: whoever fills one keeps the tensors alive for as long as it is used.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from specproxy.models.machine import cache_folder, cpu_identity

SOURCES = Path(__file__).parent / "cpp"

FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++20", "-shared", "-fPIC", "-fopenmp")
"""No contraction: a sum and a product stay two roundings wherever the compiler inlines them."""

NEEDED = ("avx512f", "avx512bw", "avx512_bf16")
"""Processor features that the code is written for; /proc/cpuinfo's names."""

TIMEOUT_S = 120.0

_INDEX, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


def _indices(*names: str) -> list[tuple[str, type[ctypes.c_int64]]]:
    return [(name, _INDEX) for name in names]


def _addresses(*names: str) -> list[tuple[str, type[ctypes.c_void_p]]]:
    return [(name, _ADDRESS) for name in names]


class Product(ctypes.Structure):
    """See ``cpp/products.h``."""

    _fields_ = [*_addresses("weight", "bias"), *_indices("inputs", "outputs")]


class Attention(ctypes.Structure):
    """See ``cpp/attention.h``."""

    _fields_ = [
        ("qkv", Product),
        ("o", Product),
        *_addresses("cos", "sin", "q_norm", "k_norm"),
        *_indices("heads", "kv_heads", "width", "rotated", "window"),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    ]


class Rows(ctypes.Structure):
    """See ``cpp/attention.h``."""

    _fields_ = [
        *_indices("count", "page", "slots"),
        *_addresses("positions", "to", "table", "last", "first", "tail_from", "tail", "pages", "tails"),
    ]


class Layer(ctypes.Structure):
    """See ``cpp/step.cpp``."""

    _fields_ = [
        *_addresses("input_norm", "post_norm"),
        ("attention", Attention),
        ("gate_up", Product),
        ("down", Product),
    ]


class Model(ctypes.Structure):
    """See ``cpp/step.cpp``."""

    _fields_ = [
        *_indices("layers", "hidden"),
        ("eps", ctypes.c_float),
        *_addresses("embedding", "norm"),
        ("head", Product),
        *_addresses("layer"),
    ]


class Call(ctypes.Structure):
    """See ``cpp/step.cpp``."""

    _fields_ = [
        ("rows", Rows),
        *_indices("depth", "wanted_count", "taps"),
        *_addresses("ids", "wanted", "tapped", "kv", "logits", "states"),
        ("threads", ctypes.c_int),
    ]


class Library:
    """The loaded code. ``identity``: of its source, compiler and processor."""

    def __init__(self, file: Path, identity: str) -> None:
        code = ctypes.CDLL(str(file))
        self.identity = identity
        pointer, index, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        self.run_step = _function(code.run_step, [pointer, pointer])
        self.run_product = _function(code.run_product, [pointer, pointer, index, pointer, threads])
        self.run_attention = _function(code.run_attention, [pointer, pointer, pointer, pointer, pointer, threads])
        self.run_mlp = _function(code.run_mlp, [pointer, pointer, pointer, index, pointer, threads])
        self.run_norm = _function(code.run_norm, [pointer, pointer, index, index, ctypes.c_float, pointer])


def _function(function: Callable[..., None], arguments: Sequence[type]) -> Callable[..., None]:
    """With its signature: nothing is returned."""
    function.argtypes = list(arguments)  # type: ignore[attr-defined]
    function.restype = None  # type: ignore[attr-defined]
    return function


def native_library(progress: Callable[[str], None]) -> Library | None:
    """The code for this processor, compiled now if there is none yet; ``None`` where there can be none, with the reason
    told to ``progress``."""
    processor = cpu_identity()
    missing = [feature for feature in NEEDED if feature not in processor.split()]
    if missing:
        progress(f"this processor has no {missing[0]}, so steps are not compiled")
        return None
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    sources = [SOURCES / name for name in ("products.h", "attention.h", "step.cpp")]
    facts = [processor, " ".join(FLAGS), *(source.read_text() for source in sources)]
    identity = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
    file = cache_folder() / f"native-{identity}.so"
    if not file.is_file():
        if compiler is None:
            progress("no C++ compiler (g++), so steps are not compiled and take longer")
            return None
        progress("compiling steps for this processor (once, a few seconds)")
        problem = _compile(compiler, sources[-1], file)
        if problem:
            progress(f"steps could not be compiled and take longer: {problem}")
            return None
    try:
        return Library(file, identity)
    except (OSError, AttributeError) as error:
        progress(f"{file} cannot be loaded, so steps take longer: {error}")
        return None


def _compile(compiler: str, source: Path, file: Path) -> str:
    """Why not, or an empty text."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=file.parent, prefix="compiling-") as folder:
            out = Path(folder) / file.name
            done = subprocess.run(
                [compiler, *FLAGS, str(source), "-o", str(out)],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode != 0:
                errors = [line for line in done.stderr.splitlines() if "error" in line]
                return errors[0] if errors else f"the compiler ended with {done.returncode}"
            out.replace(file)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""
