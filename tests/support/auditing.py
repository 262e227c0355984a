"""Answers of real engines and their audits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specproxy.bundle import AuditBundle, AuditResult
from specproxy.engine.audits import Audits
from specproxy.vocabulary import SamplingParams, Submission
from specproxy.wire.frames import Audit
from tests.support.driver import Answer, Driver
from tests.support.identity import decision

LENGTH = 32


@dataclass
class Auditing:
    """An engine that answers, and the audits of its answers."""

    driver: Driver
    audits: Audits

    def answers(
        self, records: Sequence[dict[str, Any]], drafter: str = "off", choices: int = 1, **params: Any
    ) -> list[AuditBundle]:
        """Bundles of answers to ``records``, served all at once."""
        asked = SamplingParams(**{"max_tokens": LENGTH} | params)
        submissions = [
            self.driver.submission(record["ids"], decision(drafter, 4), seed=90 + i, params=asked, choice=choice)
            for i, record in enumerate(records)
            for choice in range(choices)
        ]
        answers = self.driver.run(submissions)
        return [self.bundle(submission, answer) for submission, answer in zip(submissions, answers, strict=True)]

    def bundle(self, submission: Submission, answer: Answer) -> AuditBundle:
        """What there is to audit of an answer."""
        known = self.driver.assembled
        return AuditBundle(
            submission.id,
            known.model.fingerprint,
            known.numerics,
            submission.prompt,
            answer.tokens,
            answer.finish or "abort",  # type: ignore[arg-type]
            submission.params,
            submission.seed,
            submission.choice,
            submission.decision.route,
            submission.decision.revision,
            stop_token=answer.tokens[-1] if answer.finish == "stop" else None,
            drafters=submission.decision.drafters,
        )

    def audit(self, *bundles: AuditBundle) -> list[AuditResult]:
        """Their results, in order."""
        for bundle in bundles:
            self.audits.add(Audit(bundle))
        found: list[AuditResult] = []
        while self.audits.waiting or len(found) < len(bundles):
            found += self.audits.step(busy=False)
        return found

    def verdict(self, bundle: AuditBundle) -> str:
        """The verdict on one answer."""
        return self.audit(bundle)[0].verdict
