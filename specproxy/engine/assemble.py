"""Builds an engine from its configuration: model, self-test, memory, drafters, cost table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from specproxy.config.schema import DrafterConfig, EngineConfig, ModelConfig
from specproxy.drafters import registry
from specproxy.drafters.base import Drafter
from specproxy.engine.capture import Captures
from specproxy.engine.controller import Controller
from specproxy.engine.drafter_sizes import TargetSize
from specproxy.engine.drafting import Drafting
from specproxy.engine.host import DrafterHost, make_host
from specproxy.engine.late_room import LateRoom
from specproxy.engine.loaded import LoadedDrafters
from specproxy.engine.loop import Engine
from specproxy.engine.memory import plan_start, read_memory, settle
from specproxy.engine.numerics import describe, proven_path
from specproxy.engine.pages import PagePool
from specproxy.engine.ranks.leader import load_target
from specproxy.engine.runner import Runner
from specproxy.engine.scheduler import Scheduler
from specproxy.engine.sequence import Sequence
from specproxy.engine.threads import Threads
from specproxy.engine.warmup import measure_chains, measure_steps
from specproxy.errors import ModelLoadError
from specproxy.kernels.paged import KVBuffers
from specproxy.models.base import ModelSpec, StepModel
from specproxy.structured.grammars import Grammars
from specproxy.vocabulary import DrafterInfo, ModelInfo, Numerics

if TYPE_CHECKING:
    from specproxy.engine.rounds import Rounds

PAGE_SIZE = 64
"""Tokens per page. Divides the attention's key block and the prefill chunk."""


@dataclass
class Assembled:
    """A running engine and what the server must know about it. ``sequences``: that run at a time at most.

    ``listeners``: of each drafter, to pages that change hands. ``room``: of drafters that come later; ``None`` during
    the start, whose plan has room for those that are declared.
    """

    engine: Engine
    host: DrafterHost
    model: ModelInfo
    numerics: Numerics
    configs: dict[str, DrafterConfig]
    captures: Captures
    sequences: int
    listeners: dict[str, list[Callable[[int], None]]] = field(default_factory=dict)
    room: LateRoom | None = None

    def load_drafter(self, name: str, config: DrafterConfig) -> None:
        """Load one drafter and offer it from the next step on; of the same name, it takes the other's place once it is
        loaded and has passed its trial. Raises StartError; then the drafters are those that there were."""
        engine, host, before = self.engine, self.host, self.engine.drafting.drafters.get(name)
        engine.land()
        engine.runner.threads.enter(1)
        if self.room is not None:
            self.room.check(name, config, read_memory(host.device).free)
        heard = len(host.listeners)
        try:
            drafter = load_drafter(name, config, host)
            self.captures.capture(drafter.needs.hidden, host.progress)
            self._offer(drafter)
        except BaseException:
            del host.listeners[heard:]
            if engine.drafting.drafters.get(name) is not before:
                engine.forget(name)
                if before is not None:
                    self._offer(before)
            raise
        mine = host.listeners[heard:]
        self._stop_listening(name)
        self.listeners[name], self.configs[name] = mine, config

    def _offer(self, drafter: Drafter) -> None:
        """Let a drafter draft from the next step on, its cost measured."""
        engine = self.engine
        engine.add(drafter)
        if engine.rounds is not None:
            engine.rounds.graphs.prepare(self.sequences)
        chains, catch_up = measure_chains(engine, self.host.vocab_size, drafter)
        engine.drafting.price(drafter.name, chains, catch_up)

    def unload_drafter(self, name: str) -> None:
        """Drop a drafter; rows that used it go on without."""
        self.engine.forget(name)
        self._stop_listening(name)
        self.configs.pop(name, None)

    def _stop_listening(self, name: str) -> None:
        """Nothing may keep the memory of a drafter that is gone."""
        gone = self.listeners.pop(name, [])
        self.host.listeners[:] = [listener for listener in self.host.listeners if listener not in gone]

    def close(self) -> None:
        """End the processes that share the target with this one."""
        group = self.engine.runner.model.group
        if group is not None:
            group.leave()

    def drafter_infos(self) -> list[DrafterInfo]:
        """The loaded drafters."""
        return [
            DrafterInfo(name, self.configs[name].type, d.needs.max_k, d.needs.window, d.fingerprint, *d.memory())
            for name, d in self.engine.drafting.drafters.items()
        ]


def load_drafter(name: str, config: DrafterConfig, host: DrafterHost) -> Drafter:
    """A drafter as declared. Raises ConfigError or ModelLoadError."""
    options = {"path": config.path, "max_k": config.max_k, **config.options}
    try:
        return registry.load(name, config.type, options, host)
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"drafters.{name}: does not fit what the target left of {host.device}'s memory; lower model.kv_memory or "
            f"model.max_sequences: {error}"
        ) from None


def assemble(
    config: EngineConfig, progress: Callable[[str], None], lost: Callable[[str], None] = lambda _: None
) -> Assembled:
    """Load everything; ``progress`` is told what happens, and ``lost``, from a thread of its own, if one of several
    processes that share the target ends. Raises StartError with one message for the user."""
    torch.set_grad_enabled(False)
    progress(f"loading {config.model.path}")
    model, folder = load_target(config.model, lost)
    try:
        return _assemble(config, model, folder, progress)
    except BaseException:
        if model.group is not None:
            model.group.leave()
        raise


def _assemble(config: EngineConfig, model: StepModel, folder: Path, progress: Callable[[str], None]) -> Assembled:
    """The engine around a target that is loaded."""
    wanted = config.model
    threads = Threads.choose(wanted.threads)
    model, rules = proven_path(model, PAGE_SIZE, threads, wanted, progress)
    plan = plan_start(config, model, folder, rules, PAGE_SIZE)
    kv = _allocate(plan.pages, model.spec)
    captures = Captures(model, kv, rules, wanted.max_sequences)
    runner = Runner(model, kv, rules, threads, captures.graphs)
    host = make_host(runner, folder, wanted.grow, plan.pages, PAGE_SIZE, progress)
    captures.capture((), progress)
    engine = _engine(runner, host, wanted.max_sequences)
    if engine.rounds is not None:
        engine.rounds.graphs.prepare(wanted.max_sequences)
    info, numerics = _info(wanted, model.spec, host.vocab_size), describe(model, rules, threads)
    assembled = Assembled(engine, host, info, numerics, {}, captures, wanted.max_sequences)
    for name, drafter_config in config.drafters.items():
        progress(f"loading drafter {name}")
        assembled.load_drafter(name, drafter_config)
    drafters = engine.drafting.drafters
    captures.capture([state for drafter in drafters.values() for state in drafter.needs.hidden], progress)
    captured = captures.bytes + (0 if engine.rounds is None else engine.rounds.graphs.bytes)
    settled = settle(plan, drafters, captured)
    for line in settled.lines():
        progress(line)
    target = TargetSize(model.spec, folder, plan.weights, wanted.grow, PAGE_SIZE)
    assembled.room = LateRoom.of(settled, target, model, rules, wanted)
    return assembled


def _engine(runner: Runner, host: DrafterHost, max_sequences: int) -> Engine:
    """The engine without drafters, its steps measured."""
    rules, spec, clock = runner.rules, runner.model.spec, time.monotonic
    pool = PagePool(host.num_pages, PAGE_SIZE, -(-spec.max_len // PAGE_SIZE), host.page_allocated)
    host.progress("measuring step times")
    controller = Controller(measure_steps(runner, pool, host.vocab_size), clock)
    loaded = LoadedDrafters(max_sequences)
    drafting = Drafting(loaded, controller, clock, trees=rules.trees or not rules.exact)
    rounds = _rounds(runner, loaded)

    def evicted(sequence: Sequence) -> None:
        if rounds is not None:
            rounds.unseat(sequence)
        loaded.release(sequence)

    scheduler = Scheduler(pool, max_sequences, rules.one_provenance, evicted)
    grammars = Grammars(host.target.folder / "tokenizer.json", host.vocab_size, spec.eos_token_ids)
    return Engine(runner, scheduler, drafting, controller, host.vocab_size, clock, grammars, rounds)


def _info(wanted: ModelConfig, spec: ModelSpec, vocab_size: int) -> ModelInfo:
    """What the server must know of the target."""
    return ModelInfo(
        name=wanted.name or Path(wanted.path).name,
        fingerprint=spec.fingerprint,
        max_model_len=spec.max_len,
        vocab_size=vocab_size,
        eos_token_ids=list(spec.eos_token_ids),
    )


def _allocate(pages: int, spec: ModelSpec) -> KVBuffers:
    """The target's KV. Raises ModelLoadError where a plan was too bold."""
    try:
        return KVBuffers.allocate(spec.layers, pages, PAGE_SIZE, spec.dtype, spec.device)
    except (RuntimeError, MemoryError) as error:
        raise ModelLoadError(f"{pages} pages of KV do not fit the memory of {spec.device}: {error}") from None


def _rounds(runner: Runner, loaded: LoadedDrafters) -> Rounds | None:
    """Rounds on the device, where the target's path is made for them."""
    if runner.model.spec.path_kind != "device" or runner.model.spec.ranks > 1:
        return None
    from specproxy.engine.rounds import Rounds

    return Rounds(runner, loaded, time.monotonic)
