"""An engine without its process: the real model, loop and drafters, driven step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specproxy.engine.assemble import Assembled
from specproxy.vocabulary import Decision, Delta, SamplingParams, SequenceStats, Submission, TokenLogprob

OFF = Decision("off", "r")


@dataclass
class Answer:
    """All that a client could see of one sequence."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None
    stats: SequenceStats = field(default_factory=SequenceStats)
    error: str | None = None

    def visible(self) -> tuple[Any, ...]:
        """What speculation must not change."""
        return self.tokens, self.logprobs, self.prompt_logprobs, self.finish, self.stats.prompt_tokens


class Driver:
    """Feeds submissions to an engine and collects answers."""

    def __init__(self, assembled: Assembled) -> None:
        self.assembled = assembled
        self.engine = assembled.engine
        self._number = 0

    def run(self, submissions: Sequence[Submission], every_step: Callable[[], None] | None = None) -> list[Answer]:
        """Submit all at once, step until idle; answers in order."""
        answers = {s.id: Answer() for s in submissions}
        for submission in submissions:
            self.engine.submit(submission)
        while not self.engine.idle:
            for delta in self.engine.step():
                self._take(answers[delta.id], delta)
            if every_step is not None:
                every_step()
        return [answers[s.id] for s in submissions]

    def _take(self, answer: Answer, delta: Delta) -> None:
        answer.tokens += delta.tokens
        answer.logprobs += delta.logprobs or []
        answer.prompt_logprobs += delta.prompt_logprobs or []
        if delta.finish_reason is not None:
            answer.finish = delta.finish_reason
            answer.stats = delta.stats or SequenceStats()
            answer.error = delta.error.message if delta.error else None

    def submission(self, prompt: Sequence[int], decision: Decision = OFF, seed: int = 1, **more: Any) -> Submission:
        """A submission with an id of its own; ``params`` by keyword or as SamplingParams."""
        self._number += 1
        params = more.pop("params", None) or SamplingParams(temperature=0.0, max_tokens=32)
        return Submission(f"s{self._number}", list(prompt), seed, params, decision, **more)
