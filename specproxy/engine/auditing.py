"""What audits of a loaded target need: beside a running engine, and offline."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from specproxy.audit.job import AuditTarget
from specproxy.bundle import Tolerance
from specproxy.config.schema import ModelConfig
from specproxy.engine.assemble import PAGE_SIZE, Assembled
from specproxy.engine.audits import Audits
from specproxy.engine.numerics import proven_path
from specproxy.engine.ranks.leader import load_target
from specproxy.engine.runner import Runner
from specproxy.engine.threads import Threads
from specproxy.engine.tolerance import AUDIT_ROWS, known_tolerance, measure_at_once, measure_tolerance
from specproxy.errors import ModelLoadError
from specproxy.kernels.paged import KVBuffers
from specproxy.models.base import StepModel
from specproxy.models.loading import tokenizer_size
from specproxy.structured.grammars import Grammars

SHARED = "a target shared by several ranks has no whole stock module to audit with"


def make_audits(assembled: Assembled) -> Audits:
    """The audits of a running engine, none of them queued."""
    runner, host = assembled.engine.runner, assembled.host
    measure = partial(measure_tolerance, runner, host.target.folder, host.vocab_size, host.page_size)
    whole = runner.model.group is None
    tolerance = known_tolerance(runner) if whole else None
    target = _target(runner.model, host.vocab_size, assembled.engine.grammars)
    return Audits(target, runner, time.monotonic, measure, tolerance, "" if whole else SHARED)


def offline_target(
    config: ModelConfig, progress: Callable[[str], None], *, fingerprint: str, measured: bool
) -> tuple[AuditTarget, Tolerance | None]:
    """The target as configured, and its tolerance; without it where it is not to be ``measured``. Raises ModelLoadError
    where it has another ``fingerprint``, too."""
    if config.tensor_parallel > 1:
        raise ModelLoadError(f"model.tensor_parallel: {SHARED}; set it to 1, or audit where one device holds the model")
    torch.set_grad_enabled(False)
    progress(f"loading {config.path}")
    model, folder = load_target(config, lambda _: None)
    if model.spec.fingerprint != fingerprint:
        raise ModelLoadError(
            f"{config.path} has fingerprint {model.spec.fingerprint}, and the answer is of a model with {fingerprint}; "
            "configure that one, for example with --model"
        )
    vocab_size = min(tokenizer_size(folder), model.spec.vocab_size)
    grammars = Grammars(folder / "tokenizer.json", vocab_size, model.spec.eos_token_ids)
    if not measured:
        return _target(model, vocab_size, grammars), None
    threads = Threads.choose(config.threads)
    model, rules = proven_path(model, PAGE_SIZE, threads, config, progress)
    spec = model.spec
    kv = KVBuffers.allocate(spec.layers, KVBuffers.RESERVED_PAGES, PAGE_SIZE, spec.dtype, spec.device)
    runner = Runner(model, kv, rules, threads)
    tolerance = known_tolerance(runner)
    if tolerance is None:
        progress("measuring how far the engine and the stock model are apart")
        tolerance = measure_at_once(measure_tolerance(runner, folder, vocab_size, PAGE_SIZE))
    threads.enter(AUDIT_ROWS)
    return _target(model, vocab_size, grammars), tolerance


def _target(model: StepModel, vocab_size: int, grammars: Grammars) -> AuditTarget:
    spec = model.spec
    eos = frozenset(spec.eos_token_ids)
    return AuditTarget(model.stock, spec.fingerprint, vocab_size, eos, spec.max_len, grammars)
