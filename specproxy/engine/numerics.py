"""The self-test's verdict, remembered per fingerprint of everything that could change it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from specproxy.config.schema import ModelConfig
from specproxy.engine.runner import NUMERIC, Rules
from specproxy.engine.selftest import CANDIDATES, PREFILL_ROWS, SelfTest
from specproxy.engine.threads import Threads
from specproxy.models.base import StepModel
from specproxy.models.machine import cache_folder, cpu_identity
from specproxy.models.native import native_model
from specproxy.vocabulary import Numerics

SELFTEST_VERSION = 12
"""Part of the fingerprint: raise it when the test, the attention or the step changes."""

RUNGS = ("numeric", "bitwise-fixed", "bitwise")
TOP = (2, True, True)
"""The verdicts in their order, and the most that can be proven: see ``_rung``."""

EXPERTS = ("moe", "mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss", "llama4", "minimax")
"""Parts of model-type names with routed experts: rows share expert products, so their bits depend on each other."""


MOST_EXACT_RANKS = 2
"""Ranks whose parts have one sum in either order: see ``models/sharding.py``."""


def numerics_fingerprint(model: StepModel, threads: Threads) -> str:
    """SHA-256 (16 hex digits) over device, versions, threads, model, path and widths."""
    spec = model.spec
    device = torch.cuda.get_device_name() if spec.device.startswith("cuda") else cpu_identity()
    facts = [
        SELFTEST_VERSION,
        device,
        str(torch.__version__),
        version("transformers"),
        (threads.narrow, threads.wide),
        torch.backends.cpu.get_cpu_capability(),
        spec.fingerprint,
        spec.path_kind,
        spec.build,
        spec.ranks,
        str(spec.dtype),
        spec.max_len,
        CANDIDATES,
        PREFILL_ROWS,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def proven_path(
    model: StepModel, page_size: int, threads: Threads, wanted: ModelConfig, progress: Callable[[str], None]
) -> tuple[StepModel, Rules]:
    """What serves: ``model`` with a compiled step, where it can have one that proves as much as the eager loop does;
    else ``model`` as it is. And the rules to run under."""
    native = native_model(model, progress) if wanted.compile == "auto" else None
    progress("numerics self-test")
    if native is None:
        return model, proven_rules(model, page_size, threads, wanted.exactness)
    compiled = proven_rules(native, page_size, threads, wanted.exactness)
    if wanted.exactness == "numeric" or _rung(compiled) == TOP:
        return native, compiled
    eager = proven_rules(model, page_size, threads, wanted.exactness)
    if _rung(compiled) >= _rung(eager):
        return native, compiled
    why = "the compiled step proved less than the eager loop, which serves"
    progress(f"{why}: {compiled.detail or compiled.exactness}")
    return model, replace(eager, detail=why)


def _rung(rules: Rules) -> tuple[int, bool, bool]:
    """What ``rules`` promise, in an order."""
    return RUNGS.index(rules.exactness), rules.trees, rules.one_provenance


def proven_rules(model: StepModel, page_size: int, threads: Threads, exactness: str) -> Rules:
    """The rules to run under: the self-test's, from the cache where this fingerprint was tested before."""
    if exactness == "numeric":
        return NUMERIC
    if any(part in model.spec.model_type for part in EXPERTS):
        return Rules("numeric", (), CANDIDATES[-1], PREFILL_ROWS, detail="routed experts share products between rows")
    if model.spec.ranks > MOST_EXACT_RANKS:
        why = f"the order in which {model.spec.ranks} ranks add up depends on the other rows"
        return Rules("numeric", (), CANDIDATES[-1], PREFILL_ROWS, detail=why)
    file = cache_folder() / f"selftest-{numerics_fingerprint(model, threads)}.json"
    try:
        known = json.loads(file.read_text())
        return Rules(**{**known, "widths": tuple(known["widths"])})
    except (OSError, ValueError, TypeError, KeyError):
        rules = SelfTest(model, page_size, threads).run()
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


def describe(model: StepModel, rules: Rules, threads: Threads) -> Numerics:
    """The verdict as it goes into the hello frame."""
    return Numerics(
        fingerprint=numerics_fingerprint(model, threads),
        device=model.spec.device,
        dtype=str(model.spec.dtype).removeprefix("torch."),
        torch=str(torch.__version__),
        exactness=rules.exactness,
        widths=list(rules.widths),
        prefill_width=rules.prefill_rows,
        threads=threads.wide,
        narrow_threads=threads.narrow,
        path=model.spec.path_kind,
        trees=rules.trees,
        detail=rules.detail,
    )
