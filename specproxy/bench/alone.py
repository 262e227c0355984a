"""The engine alone: its loop in this process, without server, socket or event loop."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import msgspec

from specproxy.bench.arms import Arm
from specproxy.bench.client import Answer
from specproxy.bench.records import Record
from specproxy.config.schema import DrafterConfig, EngineConfig, StartConfig
from specproxy.server.api.chat import parse_chat
from specproxy.server.api.context import ApiContext
from specproxy.vocabulary import Decision, Delta, DrafterInfo, Numerics, Submission

if TYPE_CHECKING:
    from specproxy.engine.assemble import Assembled

T = TypeVar("T")


class AloneEngine:
    """Runs submissions to their end on a thread of its own; ``load`` makes one. ``context`` parses requests for it.

    The thread that loads is the one that runs: torch keeps its gradient mode and its worker threads per thread.
    """

    def __init__(self, assembled: Assembled, context: ApiContext, thread: ThreadPoolExecutor) -> None:
        self._assembled = assembled
        self._engine = assembled.engine
        self._thread = thread
        self._asked = 0
        self.context = context

    @classmethod
    def load(
        cls, config: StartConfig, note: Callable[[str], None], drafters: dict[str, DrafterConfig] | None = None
    ) -> AloneEngine:
        """Load the target of ``config`` with ``drafters``. Raises StartError."""
        thread = ThreadPoolExecutor(1, "engine-alone")
        assembled, context = thread.submit(_load, config, drafters or {}, note).result()
        return cls(assembled, context, thread)

    @property
    def drafters(self) -> list[DrafterInfo]:
        """What is loaded."""
        return self._assembled.drafter_infos()

    @property
    def numerics(self) -> Numerics:
        """What the self-test proved."""
        return self._assembled.numerics

    def work(self, job: Callable[[Assembled], T]) -> T:
        """Do something with the engine itself, on its thread."""
        return self._thread.submit(job, self._assembled).result()

    async def ask(self, record: Record, arm: Arm, repeat: int, *, max_tokens: int) -> Answer:
        """One answer of ``record`` as ``arm`` drafts, in a group and a cache of the arm's and the repeat's own."""
        decision = arm.decision([info.name for info in self.drafters])
        (answer,) = await self.answer([self.submission(record, decision, f"{arm.name}#{repeat}", max_tokens)], 1)
        return answer

    def submission(self, record: Record, decision: Decision, salt: str, max_tokens: int) -> Submission:
        """What the server would submit; with an id of its own."""
        self._asked += 1
        body = record.body | {"model": self.context.name, "max_completion_tokens": max_tokens}
        parsed = parse_chat(msgspec.json.encode(body), self.context)
        return parsed.submissions(decision, record.seed, salt=salt, id_prefix=f"alone-{self._asked}")[0]

    async def answer(
        self, submissions: Sequence[Submission], at_once: int, hear: Callable[[Delta], None] = lambda delta: None
    ) -> list[Answer]:
        """Answer all, ``at_once`` at a time: where one ends the next begins. Times run from the first one's start.
        ``hear`` gets every delta, on the engine's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, submissions, at_once, hear)

    def _run(self, submissions: Sequence[Submission], at_once: int, hear: Callable[[Delta], None]) -> list[Answer]:
        answers = {submission.id: Answer() for submission in submissions}
        waiting, running = deque(submissions), 0
        started = time.perf_counter()
        while waiting or running:
            while waiting and running < at_once:
                self._engine.submit(waiting.popleft())
                running += 1
            deltas = self._engine.step()
            now = time.perf_counter() - started
            for delta in deltas:
                hear(delta)
                _take(answers[delta.id], delta, now)
                running -= delta.finish_reason is not None
        return list(answers.values())


def _load(
    config: StartConfig, drafters: dict[str, DrafterConfig], note: Callable[[str], None]
) -> tuple[Assembled, ApiContext]:
    from specproxy.engine.assemble import assemble
    from specproxy.models.loading import find_model

    assembled = assemble(EngineConfig(socket="", model=config.model, drafters=drafters, log=config.log), note)
    model = assembled.model
    context = ApiContext.load(find_model(config.model.path, "target"), model.name, model.max_model_len)
    gc.collect()
    gc.freeze()
    return assembled, context


def _take(answer: Answer, delta: Delta, now: float) -> None:
    if delta.error is not None:
        answer.error = delta.error.message
        return
    if delta.tokens:
        answer.ttft_s = answer.ttft_s or now
        answer.total_s = now
    answer.token_ids += delta.tokens
    answer.tokens = len(answer.token_ids)
    answer.finish_reason = delta.finish_reason or answer.finish_reason
    if delta.stats is not None:
        answer.steps, answer.drafts = delta.stats.steps, delta.stats.drafts
        answer.drafted = sum(counts.drafted for counts in answer.drafts)
        answer.accepted = sum(counts.accepted for counts in answer.drafts)
