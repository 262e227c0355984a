"""Builds an engine from its configuration: model, self-test, memory, drafters, cost table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from specproxy.config.schema import DrafterConfig, EngineConfig
from specproxy.drafters import registry
from specproxy.drafters.base import Drafter
from specproxy.engine.controller import Controller
from specproxy.engine.drafting import Drafting
from specproxy.engine.loop import Engine
from specproxy.engine.memory import count_pages
from specproxy.engine.numerics import describe, proven_path
from specproxy.engine.own_texts import write_own_texts
from specproxy.engine.pages import PagePool
from specproxy.engine.runner import Runner
from specproxy.engine.scheduler import Scheduler
from specproxy.engine.threads import Threads
from specproxy.engine.warmup import measure_chains, measure_steps
from specproxy.errors import ModelLoadError
from specproxy.heads.base import OwnText, TargetFacts
from specproxy.kernels.paged import KVBuffers
from specproxy.models.base import StepModel
from specproxy.models.loading import load_model, tokenizer_hash, tokenizer_size
from specproxy.models.native import NativeModel
from specproxy.vocabulary import DrafterInfo, ModelInfo, Numerics

PAGE_SIZE = 64
"""Tokens per page. Divides the attention's key block and the prefill chunk."""


@dataclass
class DrafterHost:
    """What drafters are given at load (``drafters.registry.Host``)."""

    vocab_size: int
    max_model_len: int
    device: str
    tokenizer: str
    target: TargetFacts
    model: StepModel
    kv: KVBuffers
    num_pages: int
    page_size: int
    tell: Callable[[str], None]
    write_texts: Callable[[], list[OwnText]]
    listeners: list[Callable[[int], None]] = field(default_factory=list)

    def progress(self, what: str) -> None:
        """Tell whoever waits what is being done."""
        self.tell(what)

    def own_texts(self) -> list[OwnText]:
        """Texts that the target wrote."""
        return self.write_texts()

    def on_allocate(self, listener: Callable[[int], None]) -> None:
        """Call ``listener`` with every page that changes hands."""
        self.listeners.append(listener)

    def page_allocated(self, page: int) -> None:
        """Tell every listener."""
        for listener in self.listeners:
            listener(page)


@dataclass
class Assembled:
    """A running engine and what the server must know about it."""

    engine: Engine
    host: DrafterHost
    model: ModelInfo
    numerics: Numerics
    configs: dict[str, DrafterConfig]

    def load_drafter(self, name: str, config: DrafterConfig) -> None:
        """Load one drafter and offer it from the next step on. Raises StartError."""
        engine = self.engine
        engine.runner.threads.enter(1)
        drafter = load_drafter(name, config, self.host)
        chains, catch_up = measure_chains(engine.runner, engine.scheduler.pool, self.host.vocab_size, drafter)
        engine.drafting.add(drafter, chains, catch_up)
        self.configs[name] = config

    def unload_drafter(self, name: str) -> None:
        """Drop a drafter; rows that used it go on without."""
        for sequence in self.engine.scheduler.all():
            sequence.drafts.pop(name, None)
            sequence.begun.discard(name)
        self.engine.drafting.forget(name)
        self.configs.pop(name, None)

    def drafter_infos(self) -> list[DrafterInfo]:
        """The loaded drafters."""
        return [
            DrafterInfo(name, self.configs[name].type, d.needs.max_k, d.needs.window, d.fingerprint, *d.memory())
            for name, d in self.engine.drafting.drafters.items()
        ]


def load_drafter(name: str, config: DrafterConfig, host: DrafterHost) -> Drafter:
    """A drafter as declared. Raises ConfigError or ModelLoadError."""
    return registry.load(name, config.type, {"path": config.path, "max_k": config.max_k, **config.options}, host)


def assemble(config: EngineConfig, progress: Callable[[str], None]) -> Assembled:
    """Load everything; ``progress`` is told what happens. Raises StartError with one message for the user."""
    wanted = config.model
    torch.set_grad_enabled(False)
    threads = Threads.choose(wanted.threads)
    if wanted.tensor_parallel != 1:
        raise ModelLoadError("model.tensor_parallel: only 1 is available; expected 1")
    progress(f"loading {wanted.path}")
    model, folder = load_model(
        wanted.path,
        dtype=wanted.dtype,
        device=wanted.device,
        max_len=None if wanted.max_model_len == "auto" else wanted.max_model_len,
        path_kind=wanted.path_kind,
        trust_remote_code=wanted.trust_remote_code,
        grow=wanted.grow,
    )
    model, rules = proven_path(model, PAGE_SIZE, threads, wanted, progress)
    num_pages = count_pages(wanted, model.spec, PAGE_SIZE)
    try:
        kv = KVBuffers.allocate(model.spec.layers, num_pages, PAGE_SIZE, model.spec.dtype, model.spec.device)
    except (RuntimeError, MemoryError) as error:
        raise ModelLoadError(f"{num_pages} pages of KV do not fit the memory of {model.spec.device}: {error}") from None
    runner = Runner(model, kv, rules, threads)
    host = DrafterHost(
        vocab_size=min(tokenizer_size(folder), model.spec.vocab_size),
        max_model_len=model.spec.max_len,
        device=model.spec.device,
        tokenizer=tokenizer_hash(folder),
        target=_facts(model, folder, wanted.grow),
        model=model,
        kv=kv,
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        tell=progress,
        write_texts=partial(write_own_texts, runner, folder, PAGE_SIZE),
    )
    host.on_allocate(kv.zero_page)
    pool = PagePool(num_pages, PAGE_SIZE, -(-model.spec.max_len // PAGE_SIZE), host.page_allocated)
    progress("measuring step times")
    controller = Controller(measure_steps(runner, pool, host.vocab_size), time.monotonic)
    drafting = Drafting(controller, time.monotonic, trees=rules.trees or not rules.exact, max_rows=wanted.max_sequences)
    scheduler = Scheduler(pool, wanted.max_sequences, rules.one_provenance, drafting.release)
    engine = Engine(runner, scheduler, drafting, controller, host.vocab_size, time.monotonic)
    info = ModelInfo(
        name=wanted.name or Path(wanted.path).name,
        fingerprint=model.spec.fingerprint,
        max_model_len=model.spec.max_len,
        vocab_size=host.vocab_size,
        eos_token_ids=list(model.spec.eos_token_ids),
    )
    assembled = Assembled(engine, host, info, describe(model, rules, threads), {})
    for name, drafter_config in config.drafters.items():
        progress(f"loading drafter {name}")
        assembled.load_drafter(name, drafter_config)
    return assembled


def _facts(model: StepModel, folder: Path, grown: str) -> TargetFacts:
    """What heads share with the target."""
    spec = model.spec
    return TargetFacts(
        embed=model.embed,
        head=model.head,
        config=model.config,
        folder=folder,
        hidden_size=spec.hidden_size,
        num_layers=len(spec.layers),
        vocab_size=spec.vocab_size,
        dtype=spec.dtype,
        device=spec.device,
        grown=grown,
        code=model.code if isinstance(model, NativeModel) else None,
    )
