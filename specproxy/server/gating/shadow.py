"""Shadow: answered requests computed again in both arms, off the users' path, and compared pair by pair.

Both arms run one right after the other, in random order, as background work; each has a route name and a cache salt of
its own, so that the controller's statistics, the suffix index and cached prompt pages are its own. A pair waits for a
moment without users, but not for long: then it goes on beside them, within its route's budget of the device's time
(with a budget of 0 it waits). A pair during which users' work came in between counts for its tokens and its device
seconds, and not for its times. Nothing of it leaves memory.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
from msgspec.structs import replace
from prometheus_client import Counter

from specproxy.errors import RequestError
from specproxy.gate.states import Phase
from specproxy.server.accounting import percentile_95
from specproxy.server.engine_backend import EngineBackend
from specproxy.server.gating.book import Book, Change, Tracked
from specproxy.server.gating.decider import ACTIVE, CANDIDATE
from specproxy.server.gating.memory import held
from specproxy.server.gating.samples import LEAST_TOKENS, Sample, book_costs, book_speeds
from specproxy.server.gating.watch import drafters_in
from specproxy.server.generation import Generation
from specproxy.server.metrics import Metrics
from specproxy.vocabulary import Decision, SamplingParams, Submission

MAX_WAITING = 64
"""Requests that wait to be computed again; the oldest is dropped for a new one."""

LONGEST_S = 120.0
"""What an arm may take where it has all of the time; with half of it as budget, twice as long."""

LEAST_SHARE = 0.1
"""A smaller budget gives no more time than this one."""

PATIENCE_S = 2.0
"""So long a pair waits for a moment without users, in which its times would count."""

POLL_S = 0.05
WATCHED: frozenset[Phase] = frozenset({"shadow", "canary"})


class _DecidedError(Exception):
    """A pair is not needed any more."""


@dataclass(frozen=True)
class Replay:
    """A finished choice to compute again. ``served``: its tokens; ``decisions``: of both arms; ``turns``: of the
    conversation; ``budget``: share of the device's time that this may take while users are there."""

    submission: Submission
    served: Sequence[int]
    active: Decision
    candidate: Decision
    change: Change
    turns: int
    budget: float


@dataclass
class Run:
    """One arm's answer. ``alone``: no user was there meanwhile; ``drafters``: those that drafted; ``steps``: of the
    target, ``device_s``: seconds of them that were its own."""

    tokens: list[int] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    started: float = 0.0
    alone: bool = True
    finish: str = ""
    stop_token: int | None = None
    id: str = ""
    params: SamplingParams | None = None
    drafters: tuple[str, ...] = ()
    steps: int = 0
    device_s: float = 0.0

    def sample(self, arm: str, decision: Decision, prompt: int) -> Sample:
        """Its times."""
        first = self.arrivals[0][0] if self.arrivals else None
        later = sum(count for _, count in self.arrivals[1:])
        span = self.arrivals[-1][0] - first if first is not None else 0.0
        gaps = [
            (at - before) / count
            for (before, _), (at, count) in zip(self.arrivals, self.arrivals[1:], strict=False)
            for _ in range(count)
        ]
        enough = later >= LEAST_TOKENS and span > 0
        return Sample(
            decision.route,
            decision.revision,
            arm,
            prompt,
            1.0,
            None if first is None else first - self.started,
            later / span if enough else None,
            percentile_95(gaps) if enough else None,
            self.device_s or None,
        )


class Shadow:
    """Computes requests again, where nobody waits for the engine or within a budget."""

    def __init__(self, book: Book, backend: EngineBackend, metrics: Metrics, rng: random.Random) -> None:
        self._book = book
        self._backend = backend
        self._metrics = metrics
        self._replays = Counter(
            "specproxy_conversation_replays",
            "Conversations of several turns computed again, by whether the text is the served one.",
            ("route", "arm", "text"),
            registry=metrics.registry,
        )
        self._rng = rng
        self._queue: deque[Replay] = deque()
        self._wake = asyncio.Event()
        self._current: Generation | None = None
        self._serial = 0
        self.running: tuple[Replay, str] | None = None
        self.on_answer: Callable[[Replay, Run], None] = _nothing

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def offer(self, replay: Replay) -> None:
        """Queue a request; under load the oldest one is dropped."""
        if len(self._queue) >= MAX_WAITING:
            self._drop(self._queue.popleft(), "load")
        self._queue.append(replay)
        self._wake.set()

    def engine_lost(self) -> str | None:
        """Give up what runs; the arm that ran, where one did."""
        arm = None if self.running is None else self.running[1]
        if self._current is not None:
            self._current.fail(RequestError("the engine died"))
        return arm

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            replay = self._queue.popleft()
            if not self._wanted(replay):
                self._drop(replay, "decided")
                continue
            await self._moment(replay)
            try:
                await self._compare(replay)
            except RequestError:
                self._drop(replay, "failed")
            except TimeoutError:
                self._drop(replay, "load")
            except _DecidedError:
                self._drop(replay, "decided")
            finally:
                self.running = self._current = None

    async def _moment(self, replay: Replay) -> None:
        """Until the pair may begin."""
        since = time.monotonic()
        backend = self._backend
        while not backend.ready or backend.users:
            if backend.ready and replay.budget and time.monotonic() - since >= PATIENCE_S:
                return
            await asyncio.sleep(POLL_S)

    def _members(self, replay: Replay) -> list[Tracked]:
        """The candidates that a pair says something of: of the route that served it, and of the one that would."""
        routes = {replay.active.route, replay.candidate.route}
        members = [replay.change.members[name] for name in routes if name in replay.change.members]
        return [member for member in members if member.state.phase in WATCHED]

    def _wanted(self, replay: Replay) -> bool:
        """Whether its candidate is still on its way, and nothing is switched off that it would be measured with."""
        off = any(kill.covers(r) for kill in self._book.kills for r in (replay.active.route, replay.candidate.route))
        return self._book.change is replay.change and bool(self._members(replay)) and not off

    async def _compare(self, replay: Replay) -> None:
        runs: dict[str, Run] = {}
        arms = [(ACTIVE, replay.active), (CANDIDATE, replay.candidate)]
        self._rng.shuffle(arms)
        for arm, decision in arms:
            self.running = (replay, arm)
            runs[arm] = await self._answer(replay, arm, decision)
        self.running = None
        candidate, active = runs[CANDIDATE], runs[ACTIVE]
        if not all(run.finish in ("stop", "length") for run in runs.values()):
            self._drop(replay, "failed")
            return
        same = candidate.tokens == active.tokens
        self._metrics.shadow_pairs.labels(replay.active.route, _told(same)).inc()
        if replay.turns > 1:
            for arm, run in runs.items():
                told = _told(run.tokens == list(replay.served))
                self._replays.labels(replay.active.route, arm, told).inc()
        for member in self._members(replay):
            self._book_pair(member, replay, candidate, active, same)
        self.on_answer(replay, candidate)
        self._book.changed()

    def _book_pair(self, member: Tracked, replay: Replay, candidate: Run, active: Run, same: bool) -> None:
        seen, member.dirty = member.evidence.shadow, True
        seen.count(candidate=True)
        seen.count(candidate=False)
        hello = self._backend.hello
        for work, run, decision in (
            (seen.candidate_work, candidate, replay.candidate),
            (seen.control_work, active, replay.active),
        ):
            work.add(len(run.tokens), run.steps, None if hello is None else held(decision, hello))
        if not same and member.rules.mismatch.zero:
            structlog.get_logger().error("shadow pair differs", route=member.route, revision=member.revision[:12])
            member.evidence.mismatches.add(member.rules.mismatch, hard=True)
        if replay.turns > 1:
            served = list(replay.served)
            seen.rates["stability"].add(candidate=True, good=candidate.tokens == served)
            seen.rates["stability"].add(candidate=False, good=active.tokens == served)
        prompt = len(replay.submission.prompt)
        mine = candidate.sample(CANDIDATE, replay.candidate, prompt)
        other = active.sample(ACTIVE, replay.active, prompt)
        book_costs(seen, mine, other)
        if not (candidate.alone and active.alone):
            seen.disturbed += 1
            return
        book_speeds(seen, mine, other)
        for metric, values in (
            ("ttft_p95", (mine.ttft_s, other.ttft_s)),
            ("itl_p95", (mine.itl_p95_s, other.itl_p95_s)),
        ):
            if values[0] is not None and values[1] is not None:
                seen.tails[metric].add_pair(values[0], values[1])

    async def _answer(self, replay: Replay, arm: str, decision: Decision) -> Run:
        """One arm's answer, exactly as long as the served one. Raises RequestError, TimeoutError, and _DecidedError
        where nobody needs it any more."""
        self._serial += 1
        served = replay.submission
        submission = replace(
            served,
            id=f"shadow-{self._serial}",
            params=replace(served.params, max_tokens=len(replay.served), logprobs=None, prompt_logprobs=None),
            decision=replace(decision, route=f"{decision.route} ({arm} in shadow)", arm=arm),
            salt=f"{arm} in shadow\0{served.salt}",
            work="background",
            busy_share=replay.budget,
        )
        before, alone = self._backend.user_starts, not self._backend.users
        run = Run(started=time.perf_counter(), id=submission.id, params=submission.params, drafters=decision.drafters)
        self._current = Generation(self._backend, [submission])
        async with asyncio.timeout(LONGEST_S / max(replay.budget, LEAST_SHARE)), self._current as generation:
            while generation.running:
                if not self._wanted(replay):
                    raise _DecidedError
                for _, delta in await generation.take():
                    if delta.error is not None:
                        raise RequestError(delta.error.message)
                    if delta.tokens:
                        run.tokens += delta.tokens
                        run.arrivals.append((time.perf_counter(), len(delta.tokens)))
                    run.finish, run.stop_token = delta.finish_reason or "", delta.stop_token
                    if delta.stats is not None:
                        run.drafters, run.steps = drafters_in(delta.stats), delta.stats.steps
                        run.device_s = delta.stats.device_s
        run.alone = alone and self._backend.user_starts == before and not self._backend.users
        return run

    def _drop(self, replay: Replay, why: str) -> None:
        self._metrics.shadow_dropped.labels(replay.active.route, why).inc()


def _told(same: bool) -> str:
    """A label for whether two answers are the same."""
    return "identical" if same else "different"


def _nothing(replay: Replay, run: Run) -> None:
    """Nobody asked for the candidate's answers."""
