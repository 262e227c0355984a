"""The identity experiment: the same prompts answered plainly and under a case of the axes, compared whole."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specproxy.vocabulary import Decision, SamplingParams, Submission
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
    "drafter": ["off", "ngram", "prediction", "draft_model", "replay", "mixed"],
    "k": [1, 2, 3, 4, 5, 6, 7, 8],
    "together": [1, 8],
    "cache": ["miss", "hit"],
    "preempt": [False, True],
    "resume": [False, True],
    "sampling": list(SAMPLING),
    "n": [1, 2],
}


@dataclass
class Identity:
    """Runs cases on one engine. ``records`` have ``ids`` and ``reference_ids``; ``max_tokens`` per answer."""

    driver: Driver
    max_tokens: int = 40
    logprobs: int = 2

    def __post_init__(self) -> None:
        self._plain: dict[str, list[Answer]] = {}

    def mismatches(self, case: dict[str, Any], records: Sequence[dict[str, Any]]) -> list[str]:
        """Descriptions of every answer that differs from its plain twin."""
        baseline = [a for record in records for a in self._baseline(case, record)]
        submissions = [
            self._submission(case, record, choice, plain)
            for record, plain in self._with_plain(case, records, baseline)
            for choice in [plain[0]]
        ]
        pool = self.driver.engine.scheduler.pool
        if case["cache"] == "miss":
            pool.forget_idle()
        else:
            self.driver.run([self.driver.submission(r["ids"]) for r in records])
        answers: list[Answer] = []
        for start in range(0, len(submissions), case["together"]):
            answers += self.driver.run(submissions[start : start + case["together"]], self._disturbance(case))
        if pool.used:
            return [f"{pool.used} pages are still held"]
        found = []
        for submission, before, after in zip(submissions, baseline, answers, strict=True):
            after.tokens = submission.generated + after.tokens
            if submission.generated:
                after.logprobs = before.logprobs[: len(submission.generated)] + after.logprobs
            if before.visible() != after.visible():
                found.append(f"{case}: {before.tokens} became {after.tokens} ({before.finish}, {after.finish})")
        return found

    def _with_plain(
        self, case: dict[str, Any], records: Sequence[dict[str, Any]], baseline: Sequence[Answer]
    ) -> list[tuple[dict[str, Any], tuple[int, Answer]]]:
        pairs = [(record, choice) for record in records for choice in range(case["n"])]
        return [(r, (choice, plain)) for (r, choice), plain in zip(pairs, baseline, strict=True)]

    def _baseline(self, case: dict[str, Any], record: dict[str, Any]) -> list[Answer]:
        """Plain answers of one record, computed once for each set of sampling parameters."""
        key = f"{record['id']} {case['temperature']} {case['sampling']} {case['n']} {case['drafter'] == 'replay'}"
        if key not in self._plain:
            off = case | {"drafter": "replay-off" if case["drafter"] == "replay" else "off"}
            answers = []
            for choice in range(case["n"]):
                self.driver.engine.scheduler.pool.forget_idle()
                answers += self.driver.run([self._submission(off, record, choice, (choice, Answer()))])
            self._plain[key] = answers
        return self._plain[key]

    def _submission(
        self, case: dict[str, Any], record: dict[str, Any], choice: int, plain: tuple[int, Answer]
    ) -> Submission:
        replayed = plain[1].tokens
        prediction = record["reference_ids"] or record["ids"][-20:]
        rng = random.Random(f"{record['id']} {case['k']}")
        resumed = rng.randrange(1, len(replayed)) if case.get("resume") and len(replayed) > 1 else 0
        params = SamplingParams(
            temperature=case["temperature"],
            max_tokens=self.max_tokens,
            logprobs=self.logprobs,
            **SAMPLING[case["sampling"]],
        )
        if case["drafter"].startswith("replay"):
            prediction = replayed
        submission = self.driver.submission(
            record["ids"],
            decision(case["drafter"], case["k"]),
            seed=1000 + len(record["ids"]),
            params=params,
            choice=choice,
            prediction=prediction,
            salt=record.get("salt", ""),
        )
        if resumed and case["drafter"] not in ("off", "replay-off"):
            return Submission(
                submission.id,
                submission.prompt,
                submission.seed,
                params,
                submission.decision,
                choice,
                replayed[:resumed],
                prediction,
                submission.salt,
            )
        return submission

    def _disturbance(self, case: dict[str, Any]) -> Any:
        """Preempt a running sequence every few steps, where the case says so."""
        if not case["preempt"]:
            return None
        steps = iter(range(10**9))
        scheduler = self.driver.engine.scheduler

        def disturb() -> None:
            if next(steps) % 7 == 3 and scheduler.running:
                scheduler.preempt(scheduler.running[-1])

        return disturb


def decision(drafter: str, k: int) -> Decision:
    """The decision of a case: fixed K, one drafter or all of them."""
    if drafter in ("off", "replay-off"):
        return OFF
    names = ("prediction", "ngram", "draft_model") if drafter == "mixed" else (drafter,)
    return Decision("on", "r", drafters=names, k_min=k, k_max=k, adaptive=False, auto=drafter == "mixed")
