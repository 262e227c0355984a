"""The engine alone: its loop in this process, without server, socket or event loop."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from specproxy.bench.client import Answer
from specproxy.config.schema import EngineConfig, StartConfig
from specproxy.server.api.context import ApiContext
from specproxy.vocabulary import Delta, Submission

if TYPE_CHECKING:
    from specproxy.engine.loop import Engine


class AloneEngine:
    """Runs submissions to their end on a thread of its own; ``load`` makes one. ``context`` parses requests for it.

    The thread that loads is the one that runs: torch keeps its gradient mode and its worker threads per thread.
    """

    def __init__(self, engine: Engine, context: ApiContext, thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._thread = thread
        self.context = context

    @classmethod
    def load(cls, config: StartConfig, note: Callable[[str], None]) -> AloneEngine:
        """Load the target of ``config``, without drafters. Raises StartError."""
        thread = ThreadPoolExecutor(1, "engine-alone")
        engine, context = thread.submit(_load, config, note).result()
        return cls(engine, context, thread)

    async def answer(self, submissions: Sequence[Submission], at_once: int) -> list[Answer]:
        """Answer all, ``at_once`` at a time: where one ends the next begins. Times run from the first one's start."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, submissions, at_once)

    def _run(self, submissions: Sequence[Submission], at_once: int) -> list[Answer]:
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
                _take(answers[delta.id], delta, now)
                running -= delta.finish_reason is not None
        return list(answers.values())


def _load(config: StartConfig, note: Callable[[str], None]) -> tuple[Engine, ApiContext]:
    from specproxy.engine.assemble import assemble
    from specproxy.models.loading import find_model

    assembled = assemble(EngineConfig(socket="", model=config.model, drafters={}, log=config.log), note)
    model = assembled.model
    context = ApiContext.load(find_model(config.model.path, "target"), model.name, model.max_model_len)
    gc.collect()
    gc.freeze()
    return assembled.engine, context


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
