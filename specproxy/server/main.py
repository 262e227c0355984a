"""The server process from start to end: load, serve, reload, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import prometheus_client
import structlog
import uvloop
from msgspec import structs

from specproxy.config.keys import KeyRing
from specproxy.config.schema import ModelConfig
from specproxy.errors import Draining
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.policy import PolicySet
from specproxy.policy.watch import LoadFailure, PolicyStore
from specproxy.server.admin.app import admin_keys, serving
from specproxy.server.admin.claim import url_of
from specproxy.server.admission import Admission
from specproxy.server.api import ApiContext
from specproxy.server.app import build_app, listen
from specproxy.server.capture import Captures
from specproxy.server.engine_backend import EngineBackend
from specproxy.server.gating.drafter_file import stored_drafters
from specproxy.server.gating.gate import Gate
from specproxy.server.gating.operator import GateOperator
from specproxy.server.launch import Launch
from specproxy.server.logs import configure_logs, engine_line
from specproxy.server.metrics import SHORT_REVISION, Metrics
from specproxy.server.model_folder import fetched_folder, local_folder
from specproxy.server.passthrough import Forwarding
from specproxy.server.state import Served, State
from specproxy.server.supervisor import Supervisor
from specproxy.server.tracing import tracing
from specproxy.server.upstream_metrics import UpstreamStates
from specproxy.server.watchdog import Watchdog
from specproxy.upstream.pool import Upstreams
from specproxy.wire.frames import Hello, Stats

_TICK_S = 0.1


class Announcer(Protocol):
    """Tells the person at the terminal how far the start is."""

    def loading(self, elapsed_s: float, phase: str) -> None:
        """Still loading; ``phase`` is what the engine said last. Called about ten times a second."""
        ...

    def ready(self, launch: Launch, hello: Hello, policies: PolicyStore, elapsed_s: float) -> None:
        """Requests are answered from now on."""
        ...


def run_server(launch: Launch, keys: KeyRing, announcer: Announcer) -> int:
    """Serve until a signal says stop; the exit code. Raises StartError when there is nothing to serve."""
    configure_logs(launch.config.log)
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(launch, keys, announcer))


async def _serve(launch: Launch, keys: KeyRing, announcer: Announcer) -> int:
    return await Server(launch, keys, announcer).run()


class Server:
    """Wires the parts and sees them through their life. Observes the engine for the parts that depend on it."""

    def __init__(self, launch: Launch, keys: KeyRing, announcer: Announcer) -> None:
        self._launch = launch
        self._announcer = announcer
        self._stopping = asyncio.Event()
        self._phase = ""
        config = launch.config
        backend, metrics = EngineBackend(), Metrics()
        backend.swaps.declared, backend.swaps.loaded = config.drafters, stored_drafters(Path(config.state.path))
        later = {name: drafter.config for name, drafter in backend.swaps.loaded.items()}
        self._catalogue = Catalogue.from_config(structs.replace(config, drafters=config.drafters | later))
        policies = PolicyStore(Path(config.policies), self._catalogue)
        gate = Gate(policies, backend, metrics)
        self._state = State(
            config=config,
            keys=keys,
            policies=policies,
            backend=backend,
            metrics=metrics,
            admission=Admission(config.server.max_queue),
            captures=Captures(config.capture, metrics),
            gate=gate,
            tracing=tracing(os.environ),
        )
        self._forwarding = Forwarding.to(Upstreams(config.upstreams, os.environ, metrics.upstreams))
        metrics.registry.register(UpstreamStates(self._forwarding.upstreams))
        metrics.queue_limit.set(config.server.max_queue)
        backend.observers += [metrics, gate, self]
        backend.on_drafters = self._hello_changed
        gate.book.on_serving = self._policies_changed
        policies.subscribe(on_failure=self._policies_refused)
        watchdog = Watchdog(config.server.engine_silence_s)
        self._supervisor = Supervisor(backend, launch.start_again, launch.process, self._engine_said, watchdog)

    async def run(self) -> int:
        """Start, serve, drain. Raises StartError."""
        state, backend = self._state, self._state.backend
        self._handle_signals()
        async with contextlib.AsyncExitStack() as stack:
            state.captures.start()
            stack.push_async_callback(asyncio.to_thread, state.captures.close)
            if state.tracing is not None:
                stack.push_async_callback(asyncio.to_thread, state.tracing.close)
            stack.push_async_callback(state.gate.close)
            await backend.listen(self._launch.engine_listener)
            supervision = asyncio.create_task(self._supervisor.run())
            stack.push_async_callback(_cancelled, supervision)
            stack.push_async_callback(backend.close)
            self._forwarding.upstreams.watch()
            stack.push_async_callback(self._forwarding.upstreams.close)
            runner = await listen(build_app(state, self._forwarding), self._launch.listener)
            stack.push_async_callback(runner.cleanup)
            structlog.get_logger().info("listening", url=self._launch.url)
            if not await self._load():
                return 0
            watching = asyncio.create_task(self._watch_policies())
            stack.push_async_callback(_cancelled, watching)
            await stack.enter_async_context(self._operators())
            await self._stopping.wait()
            await self._drain()
        return 0

    async def _load(self) -> bool:
        """Until the engine is ready and the tokenizer read; False when told to stop meanwhile."""
        config, state = self._launch.config, self._state
        folder = local_folder(config.model.path)
        early = asyncio.create_task(asyncio.to_thread(_context, config.model, folder)) if folder else None
        hello_task = asyncio.ensure_future(state.backend.wait_ready())
        while not hello_task.done() and not self._stopping.is_set():
            await asyncio.wait({hello_task}, timeout=_TICK_S)
            self._announcer.loading(time.monotonic() - self._launch.started, self._phase)
        if not hello_task.done():
            hello_task.cancel()
            return False
        hello = await hello_task
        parts = await early if early else await asyncio.to_thread(_fetched_context, config.model)
        context = replace(
            parts,
            name=config.model.name or hello.model.name,
            aliases=tuple(config.model.aliases),
            max_model_len=hello.model.max_model_len,
        )
        state.metrics.add_vllm_names(context.name)
        await state.gate.open(Path(config.state.path))
        state.served = Served(context, hello, int(time.time()))
        # What is loaded now stays to the end: collections need not look at it again.
        gc.collect()
        gc.freeze()
        elapsed_s = time.monotonic() - self._launch.started
        self._announcer.ready(self._launch, hello, state.policies, elapsed_s)
        return True

    @contextlib.asynccontextmanager
    async def _operators(self) -> AsyncIterator[None]:
        """Answer operators, where they have a listener; also while the server drains."""
        listener, config = self._launch.admin_listener, self._launch.config.admin
        if listener is None:
            yield
            return
        self._state.admin = url_of(listener)
        keys = admin_keys(config, os.environ)
        async with serving(
            listener, GateOperator(self._state.gate, Path(self._launch.config.state.path)), keys, config
        ):
            yield

    async def _drain(self) -> None:
        """Let answers end, up to drain_s seconds; cut what is left then."""
        state, running = self._state, self._forwarding.running
        state.draining = True
        log = structlog.get_logger()
        log.info("draining", in_flight=self._in_flight, limit_s=self._launch.config.server.drain_s)
        self._stopping.clear()
        await _first_of(self._idle(), self._stopping.wait(), timeout_s=self._launch.config.server.drain_s)
        if self._in_flight:
            log.warning("cut off by the end of the drain", in_flight=self._in_flight)
            gone = Draining("the server is shutting down")
            for generation in list(state.active):
                generation.fail(gone)
            for exchange in list(running):
                exchange.fail(gone)
            await asyncio.sleep(_TICK_S)

    @property
    def _in_flight(self) -> int:
        return self._state.admission.depth + self._forwarding.admission.depth

    async def _idle(self) -> None:
        """Until nothing is in flight; a request may go over from the engine to an upstream, or back."""
        while self._in_flight:
            await self._state.admission.wait_idle()
            await self._forwarding.admission.wait_idle()

    def engine_ready(self, hello: Hello) -> None:
        """A later process may report other numerics; policies may only name what is loaded."""
        state = self._state
        self._hello_changed(hello)
        state.policies.use(
            self._catalogue.with_engine(state.backend.swaps.known(hello.drafters), hello.numerics, hello.model)
        )

    def _hello_changed(self, hello: Hello) -> None:
        if self._state.served is not None:
            self._state.served = replace(self._state.served, hello=hello)

    def engine_lost(self) -> None:
        """Nothing to do: the backend carries the sequences over."""

    def engine_stats(self, stats: Stats) -> None:
        """Nothing to do: the metrics book them."""

    async def _watch_policies(self) -> None:
        try:
            await self._state.policies.watch()
        except Exception:  # noqa: BLE001 - a failing watcher must not end the server
            structlog.get_logger().exception("policy files are not watched any more; SIGHUP still reloads them")

    def _policies_changed(self, policies: PolicySet) -> None:
        self._state.metrics.policy_in_force(policies.hash)
        log = structlog.get_logger()
        log.info("policies in force", revision=policies.hash[:SHORT_REVISION], folder=str(policies.directory))
        for warning in policies.warnings:
            log.warning("policy warning", warning=warning)

    def _policies_refused(self, failure: LoadFailure) -> None:
        self._state.metrics.policy_errors.inc()
        kept = self._state.gate.book.serving.hash[:SHORT_REVISION]
        structlog.get_logger().error("policies refused; the old ones stay", kept=kept, problems=failure.problems)

    def _engine_said(self, line: str) -> None:
        self._phase = line.removeprefix("engine: ")
        engine_line(line)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._state.policies.reload)


async def _first_of(*waits: Coroutine[None, None, object], timeout_s: float) -> None:
    """Until one of them returns, or the time is up; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a task and see it end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _context(model: ModelConfig, folder: Path) -> ApiContext:
    return ApiContext.load(folder, "", 0, tool_format=model.tool_format or None)


def _fetched_context(model: ModelConfig) -> ApiContext:
    return _context(model, fetched_folder(model.path))
