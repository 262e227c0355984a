"""The gate of a running server: opened when the engine is ready, asked by every request, told of every ending."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import structlog

from specproxy.bundle import AuditResult
from specproxy.errors import ConfigError, PolicyError, StoreDamaged
from specproxy.gate.states import Move
from specproxy.policy.facts import Facts
from specproxy.policy.override import stays_out_of_shadow
from specproxy.policy.policy import PolicySet, Verdict
from specproxy.policy.watch import PolicyStore
from specproxy.server.accounting import Account
from specproxy.server.engine_backend import EngineBackend
from specproxy.server.gating.audits import Audited, Audits
from specproxy.server.gating.book import GATE, Book, mode_of
from specproxy.server.gating.contents import content_of, route_of
from specproxy.server.gating.decider import CANDIDATE, OVERRIDE, Decider
from specproxy.server.gating.intake import WATCHER, Intake
from specproxy.server.gating.ledger import MEMORY
from specproxy.server.gating.memory import MemoryGauge
from specproxy.server.gating.moves import Moves
from specproxy.server.gating.samples import Samples, sample_of
from specproxy.server.gating.shadow import Replay, Run, Shadow
from specproxy.server.gating.switches import AUDIT, Switches
from specproxy.server.gating.traffic import Traffic
from specproxy.server.gating.watch import Watch, bundle_of
from specproxy.server.metrics import SHORT_REVISION, Metrics
from specproxy.vocabulary import Decision, Submission
from specproxy.wire.frames import Hello, Stats

TICK_S = 0.5
"""How often evidence is looked at. Looking costs nothing in evidence: every verdict holds at any time."""

MOST_TIME = 0.05
"""Share of the time that looking may take, where evidence has grown large."""

SAVE_S = 5.0
"""How often evidence goes to disk between moves; so much is lost at most when the server is killed."""


class Gate:
    """Observes the engine and the policy files. All calls come from the event loop's thread."""

    def __init__(
        self, policies: PolicyStore, backend: EngineBackend, metrics: Metrics, clock: Callable[[], float] = time.time
    ) -> None:
        rng = random.Random()
        self.policies = policies
        self.backend = backend
        self.metrics = metrics
        self.book = Book(policies.current, clock)
        self.decider = Decider(self.book)
        self.intake = Intake(self.book)
        self.book.on_move = self._moved
        self.moves = Moves(self.book, self.intake)
        self.switches = Switches(self.book, backend)
        self.samples = Samples(self.book)
        self.traffic = Traffic()
        self.memory = MemoryGauge(metrics.registry)
        self.audits = Audits(self.book, metrics, backend.audit, self._hard, rng)
        self.shadow = Shadow(self.book, backend, metrics, rng)
        self.shadow.on_answer = self._shadow_answered
        backend.on_audited = self._audited
        self._rng = rng
        self._nudged = asyncio.Event()
        self._edit: PolicySet | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        policies.subscribe(self._edited)

    async def open(self, path: Path) -> None:
        """Open the state, let what is active serve, and begin to work. Without a file of its own only a server whose
        routes have no gate goes on. Raises StartError."""
        book, disk = self.book, self.policies.current
        try:
            await book.ledger.open(path)
        except StoreDamaged as error:
            if any(mode_of(content_of(disk, route.name, "", 0.0)) != "off" for route in disk.routes):
                raise ConfigError(str(error)) from None
            structlog.get_logger().warning("the gate's state is not kept", reason=str(error))
            await book.ledger.open(MEMORY)
        book.disk = disk
        try:
            async with book.lock:
                await self.switches.load()
                await self.intake.open()
        except StoreDamaged as error:
            raise ConfigError(str(error)) from None
        self._start(self._run())
        self._start(self.shadow.run())

    async def close(self) -> None:
        """Stop working, and write down what is known."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with self.book.lock:
            if self.book.active:
                await self.book.save_evidence()
            await self.book.ledger.close()

    def decide(self, facts: Facts) -> Verdict:
        """What holds for a request. Raises InvalidRequest."""
        self.traffic.asked(facts)
        return self.decider.decide(facts)

    def watch(
        self, facts: Facts, submissions: list[Submission], stop: tuple[str, ...], hello: Hello, account: Account
    ) -> Watch:
        """Follow a request that was decided; the gate hears of its end."""
        route = route_of(self.book.serving, submissions[0].decision.route)
        header = "" if route is None else route.effective.settings.shadow.opt_out_header
        opted_out = stays_out_of_shadow(facts, header)
        watch = Watch(facts, submissions, stop, hello, facts.load, self._ended, opted_out)
        account.on_close = watch.close
        return watch

    def nudge(self) -> None:
        """Look at the evidence now."""
        self._nudged.set()

    def engine_ready(self, hello: Hello) -> None:
        """Nothing to do: the policies are compiled again, and an edit follows where that changes them."""

    def engine_lost(self) -> None:
        """A candidate that was at work is taken for the cause: nothing of it is tried again."""
        book = self.book
        if self.backend.state == "closed":
            return  # It was told to end.
        self.audits.lost()
        arm, replay = self.shadow.engine_lost(), self.shadow.running
        if arm == CANDIDATE and replay is not None:
            self._blame(replay[0].candidate, live=False)
        for decision in {
            d for d in self.backend.decisions if d.arm == CANDIDATE and d.drafters and "in shadow" not in d.route
        }:
            self._blame(decision, live=True)
        self.backend.redecide(self.switches.plain_candidate)
        book.changed()
        self.nudge()

    def engine_stats(self, stats: Stats) -> None:
        """Nothing to do: the metrics book them."""

    def _moved(self, found: Move, actor: str) -> None:
        self.metrics.gate_moves.labels(found.after.route, found.after.phase, GATE if actor == GATE else "person").inc()

    def _start(self, work: Coroutine[None, None, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            structlog.get_logger().error("a part of the gate has ended", exc_info=error)

    async def _run(self) -> None:
        """Take edits, make moves, save evidence."""
        saved, spent = time.monotonic(), 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(TICK_S, spent / MOST_TIME)):
                    await self._nudged.wait()
            self._nudged.clear()
            began = time.monotonic()
            try:
                await self.tick()
                spent = time.monotonic() - began
                if time.monotonic() - saved >= SAVE_S:
                    saved = time.monotonic()
                    async with self.book.lock:
                        await self.book.save_evidence()
            except Exception:  # noqa: BLE001 - a full disk today must not keep the gate from moving tomorrow
                structlog.get_logger().exception("the gate could not move")

    async def tick(self) -> None:
        """What has come in since the last time, and what follows from it."""
        async with self.book.lock:
            if (edit := self._edit) is not None:
                self._edit = None
                await self._take(edit)
            if self.decider.uncovered:
                names, self.decider.uncovered = self.decider.uncovered, set()
                await self.intake.cover(names)
            await self.moves.tick()

    async def refresh(self, policies: PolicySet) -> None:
        """What serves, with what ``policies`` know of the drafters that are loaded. Callers hold the book's lock."""
        self.book.disk = policies
        await self.book.serve()

    async def _take(self, edit: PolicySet) -> None:
        try:
            if edit.catalogue != self.book.serving.catalogue:
                await self.refresh(edit)
            await self.intake.take(edit, list(self.traffic.recent), WATCHER)
        except PolicyError as error:
            structlog.get_logger().error("the edit cannot be taken over; what serves stays", problems=error.problems)

    def _edited(self, policies: PolicySet) -> None:
        if self.book.ledger.opened:
            self._edit = policies
            self.nudge()

    def _ended(self, watch: Watch, account: Account) -> None:
        """A request is over: its record is complete."""
        record = account.record
        load = (watch.load + self.backend.in_flight + 1) / 2
        if record.status not in (200, 500):
            return
        sample = sample_of(record, tokens_per_s=account.tokens_per_s, itl_p95_s=account.itl_p95_s, load=load)
        self.samples.take(sample)
        if record.status != 200 or record.error is not None:
            self.nudge()
            return
        self.traffic.ended(account)
        where = (record.route, account.allowed, record.revision[:SHORT_REVISION])
        if sample.cost_s is not None:
            self.metrics.cost.labels(*where).observe(sample.cost_s)
        for index, choice in enumerate(watch.choices):
            if choice.finish in ("stop", "length"):
                self.audits.offer(
                    Audited(
                        watch.bundle(index),
                        record.request_id,
                        record.arm,
                        choice.drafted or watch.submissions[index].decision.drafters,
                        served=True,
                    )
                )
        self._offer_shadow(watch, record.route, record.arm)

    def _offer_shadow(self, watch: Watch, route: str, arm: str) -> None:
        """A share of the route's answers is computed again in both arms."""
        change, found = self.book.change, route_of(self.book.serving, route)
        if change is None or found is None or watch.opted_out or arm == OVERRIDE:
            return
        settings, choice = found.effective.settings.shadow, watch.choices[0]
        waiting = any(member.state.phase in ("shadow", "canary") for member in change.group_of(route))
        share = settings.fraction if waiting else 0.0
        if not choice.tokens or choice.finish not in ("stop", "length") or self._rng.random() >= share:
            return
        active, candidate = self.decider.active(watch.facts), self.decider.candidate(change, watch.facts)
        self.shadow.offer(
            Replay(
                watch.submissions[0],
                choice.tokens,
                active.decision,
                candidate.decision,
                change,
                watch.facts.turns,
                settings.budget,
            )
        )

    def _shadow_answered(self, replay: Replay, run: Run) -> None:
        """The candidate's answer to a request that it has not served is audited too."""
        hello = self.backend.hello
        if hello is None or run.finish not in ("stop", "length"):
            return
        params = run.params or replay.submission.params
        submission = Submission(
            run.id, replay.submission.prompt, replay.submission.seed, params, replay.candidate, replay.submission.choice
        )
        finish = "stop" if run.finish == "stop" else "length"
        bundle = bundle_of(submission, hello, run.tokens, finish, run.stop_token)  # type: ignore[arg-type]
        self.audits.offer(Audited(bundle, run.id, CANDIDATE, run.drafters, served=False))

    def _audited(self, result: AuditResult) -> None:
        self.audits.take(result)
        if result.verdict == "hard":
            self.nudge()

    def _hard(self, item: Audited, result: AuditResult) -> None:
        """Users must get no more of this: off at the next step, whatever the gate finds later."""
        first = result.findings[0] if result.findings else None
        where = f" at position {first.position}" if first is not None else ""
        for drafter in item.drafted:
            reason = f"hard mismatch in {item.bundle.request_id}{where}"
            self._start(self.switches.kill(item.bundle.route, drafter, reason=reason, actor=AUDIT))

    def _blame(self, decision: Decision, *, live: bool) -> None:
        tracked = self.book.find(decision.route, decision.revision)
        if tracked is None or not decision.drafters:
            return
        seen = tracked.evidence.live if live else tracked.evidence.shadow
        seen.engine_errors += 1
        tracked.dirty = True
        structlog.get_logger().error(
            "the engine died while a candidate was at work", route=tracked.route, revision=tracked.revision[:12]
        )
