"""The self-test's verdict, remembered per fingerprint of everything that could change it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from specproxy.engine.runner import NUMERIC, Rules
from specproxy.engine.selftest import CANDIDATES, PREFILL_ROWS, SelfTest
from specproxy.models.base import StepModel
from specproxy.vocabulary import Numerics

SELFTEST_VERSION = 6
"""Part of the fingerprint: raise it when the test, the attention or the step changes."""

EXPERTS = ("moe", "mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss", "llama4", "minimax")
"""Parts of model-type names with routed experts: rows share expert products, so their bits depend on each other."""


def numerics_fingerprint(model: StepModel) -> str:
    """SHA-256 (16 hex digits) over device, versions, threads, model, path and widths."""
    spec = model.spec
    device = torch.cuda.get_device_name() if spec.device.startswith("cuda") else _cpu()
    facts = [
        SELFTEST_VERSION,
        device,
        str(torch.__version__),
        version("transformers"),
        torch.get_num_threads(),
        torch.backends.cpu.get_cpu_capability(),
        spec.fingerprint,
        spec.path_kind,
        str(spec.dtype),
        spec.max_len,
        CANDIDATES,
        PREFILL_ROWS,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def proven_rules(model: StepModel, page_size: int, exactness: str) -> Rules:
    """The rules to run under: the self-test's, from the cache where this fingerprint was tested before."""
    if exactness == "numeric":
        return NUMERIC
    if any(part in model.spec.model_type for part in EXPERTS):
        return Rules("numeric", (), CANDIDATES[-1], PREFILL_ROWS, detail="routed experts share products between rows")
    file = _cache_folder() / f"selftest-{numerics_fingerprint(model)}.json"
    try:
        known = json.loads(file.read_text())
        return Rules(**{**known, "widths": tuple(known["widths"])})
    except (OSError, ValueError, TypeError, KeyError):
        rules = SelfTest(model, page_size).run()
    _remember(file, rules)
    return rules


def _remember(file: Path, rules: Rules) -> None:
    """Write the verdict; a read-only home only costs the next start a second."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(vars(rules)))
        partial.replace(file)
    except OSError:
        return


def describe(model: StepModel, rules: Rules) -> Numerics:
    """The verdict as it goes into the hello frame."""
    return Numerics(
        fingerprint=numerics_fingerprint(model),
        device=model.spec.device,
        dtype=str(model.spec.dtype).removeprefix("torch."),
        torch=str(torch.__version__),
        exactness=rules.exactness,
        widths=list(rules.widths),
        prefill_width=rules.prefill_rows,
        threads=torch.get_num_threads(),
        path=model.spec.path_kind,
        detail=rules.detail,
    )


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "specproxy"


def _cpu() -> str:
    """Vendor's name of the processor, with its feature flags: both choose kernels."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    facts = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "flags", "stepping"))]
    return " ".join(facts)
