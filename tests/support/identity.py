"""The identity experiment: the same prompts answered plainly and under a case of the axes, compared whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specproxy.vocabulary import Decision, DraftCounts, SamplingParams, Submission
from tests.support.driver import OFF, Answer, Driver

SAMPLING: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalties": {"repetition_penalty": 1.15, "frequency_penalty": 0.4, "presence_penalty": 0.3},
    "top_p": {"top_p": 0.85},
    "min_p": {"min_p": 0.05, "top_k": 50},
    "bias": {"logit_bias": {2: -3.0, 270: 2.0}, "min_tokens": 12},
}

AXES: dict[str, Sequence[Any]] = {
    "temperature": [0.0, 0.8],
    "drafter": ["off", "ngram", "suffix", "prediction", "draft_model", "replay", "mixed"],
    "k": [1, 2, 3, 4, 5, 6, 7, 8],
    "together": [1, 8],
    "cache": ["miss", "hit"],
    "preempt": [False, True],
    "resume": [False, True],
    "sampling": list(SAMPLING),
    "n": [1, 2],
}

HEAD_AXES: dict[str, Sequence[Any]] = AXES | {
    "drafter": [
        "eagle3",
        "eagle3_tree",
        "medusa",
        "medusa_tree",
        "mtp",
        "mtp_tree",
        "layer_skip",
        "replay_tree",
        "heads",
        "heads_tree",
    ],
    "k": [1, 3, 5, 8],
}
"""The same with the drafters that read or share the target's states, and with trees."""

MAX_PREEMPTIONS = 3
"""Of one sequence, where they are forced."""


@dataclass
class Identity:
    """Runs cases on one engine. ``records`` have ``ids`` and ``reference_ids``; ``max_tokens`` per answer.

    ``logprobs``: alternatives asked for, ``None`` for none. ``compared`` counts answer tokens that were held against
    their plain twins; ``counts`` what drafters did.
    """

    driver: Driver
    max_tokens: int = 32
    logprobs: int | None = 2
    compared: int = 0
    counts: dict[str, DraftCounts] = field(default_factory=dict)
    _plain: dict[str, Answer] = field(default_factory=dict)

    def mismatches(self, case: dict[str, Any], records: Sequence[dict[str, Any]]) -> list[str]:
        """Descriptions of every answer that differs from its plain twin."""
        asked = [(record, choice) for record in records for choice in range(case["n"])]
        plain = [self._plain_answer(case, record, choice) for record, choice in asked]
        submissions = [self._submission(case, *one, twin) for one, twin in zip(asked, plain, strict=True)]
        pool = self.driver.engine.scheduler.pool
        if case["cache"] == "miss":
            pool.forget_idle()
        else:
            params = SamplingParams(temperature=0.0, max_tokens=1)
            salts = [record.get("salt", "") for record in records]
            self.driver.run(
                [self.driver.submission(r["ids"], params=params, salt=s) for r, s in zip(records, salts, strict=True)]
            )
        answers: list[Answer] = []
        for start in range(0, len(submissions), case["together"]):
            answers += self.driver.run(submissions[start : start + case["together"]], self._disturbance(case))
        if pool.used:
            return [f"{pool.used} pages are still held"]
        found = []
        for submission, before, after in zip(submissions, plain, answers, strict=True):
            self._book(after)
            if submission.generated:
                after.tokens = submission.generated + after.tokens
                after.logprobs = before.logprobs[: len(submission.generated)] + after.logprobs
            if before.visible() != after.visible():
                found.append(f"{case}: {before.tokens} became {after.tokens} ({before.finish}, {after.finish})")
        return found

    def accepted_lengths(self, drafter: str) -> set[int]:
        """How many tokens of a draft were accepted: every number that occurred."""
        counts = self.counts.get(drafter, DraftCounts(drafter))
        return accepted_lengths(counts.steps, counts.accepted_at)

    def _book(self, answer: Answer) -> None:
        self.compared += len(answer.tokens)
        for new in answer.stats.drafts:
            sums = self.counts.setdefault(new.drafter, DraftCounts(new.drafter))
            sums.steps += new.steps
            sums.drafted += new.drafted
            sums.accepted += new.accepted
            sums.accepted_at += [0] * (len(new.accepted_at) - len(sums.accepted_at))
            for i, count in enumerate(new.accepted_at):
                sums.accepted_at[i] += count

    def _plain_answer(self, case: dict[str, Any], record: dict[str, Any], choice: int) -> Answer:
        """The answer without anything, alone, with no page cached; computed once for all cases that sample alike."""
        key = f"{record['id']} {case['temperature']} {case['sampling']} {choice}"
        if key not in self._plain:
            self.driver.engine.scheduler.pool.forget_idle()
            plainly = case | {"drafter": "off", "resume": False}
            self._plain[key] = self.driver.run([self._submission(plainly, record, choice, Answer())])[0]
        return self._plain[key]

    def _submission(self, case: dict[str, Any], record: dict[str, Any], choice: int, plain: Answer) -> Submission:
        params = SamplingParams(
            temperature=case["temperature"],
            max_tokens=self.max_tokens,
            logprobs=self.logprobs,
            **SAMPLING[case["sampling"]],
        )
        rng = random.Random(f"{record['id']} {case['k']}")
        resumes = case["resume"] and len(plain.tokens) > 1
        expected = record["reference_ids"] or record["ids"][-20:]
        return self.driver.submission(
            record["ids"],
            decision(case["drafter"], case["k"]),
            seed=1000 + len(record["ids"]),
            params=params,
            choice=choice,
            generated=plain.tokens[: rng.randrange(1, len(plain.tokens))] if resumes else [],
            prediction=plain.tokens if case["drafter"].startswith("replay") else expected,
            salt=record.get("salt", ""),
        )

    def _disturbance(self, case: dict[str, Any]) -> Callable[[], None] | None:
        """Preempt a running sequence every few steps, where the case says so, but none so often that it never ends."""
        if not case["preempt"]:
            return None
        steps = iter(range(10**9))
        scheduler = self.driver.engine.scheduler

        def disturb() -> None:
            victims = [s for s in scheduler.running if s.stats.preemptions < MAX_PREEMPTIONS]
            if next(steps) % 7 == 3 and victims:
                scheduler.preempt(victims[-1])

        return disturb


def accepted_lengths(steps: int, accepted_at: Sequence[int]) -> set[int]:
    """Every number of accepted tokens that occurred in ``steps`` drafts, of which ``accepted_at[i]`` reached i + 1."""
    at_least = [steps, *accepted_at, 0]
    return {i for i in range(len(at_least) - 1) if at_least[i] > at_least[i + 1]}


SEVERAL = {
    "mixed": ("prediction", "suffix", "ngram", "draft_model"),
    "heads": ("ngram", "eagle3", "medusa", "mtp"),
}
"""Values of the axis that let the controller choose among drafters."""


def decision(drafter: str, k: int) -> Decision:
    """The decision of a case: fixed K, one drafter or all of them."""
    if drafter == "off":
        return OFF
    name = drafter.removesuffix("_tree")
    names, width = SEVERAL.get(name, (name,)), 3 if drafter.endswith("_tree") else 1
    return Decision(
        "on",
        "r",
        drafters=names,
        k_min=k,
        k_max=k,
        adaptive=False,
        auto=name in SEVERAL,
        tree_width=width,
        tree_nodes=width * k,
    )
