"""What a request leaves behind for the gate: its facts, its tokens as they come, and how each choice ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from specproxy.bundle import AuditBundle
from specproxy.policy.facts import Facts
from specproxy.server.accounting import Account
from specproxy.server.flight import is_last
from specproxy.vocabulary import Delta, FinishReason, SequenceStats, Submission
from specproxy.wire.frames import Hello


@dataclass
class Choice:
    """One answer of the request, as the target sampled it. ``drafted``: the drafters that had a part in it."""

    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    stop_token: int | None = None
    drafted: tuple[str, ...] = ()

    def add(self, delta: Delta, counted: int, done: bool) -> None:
        """Take a delta, of which ``counted`` tokens belong to the answer. ``done``: the answer is complete."""
        if self.finish is None:
            self.tokens += delta.tokens[:counted]
            if counted < len(delta.tokens):
                self.finish = "stop"  # A stop string stood before the end that the engine saw.
            elif is_last(delta) and delta.finish_reason is not None:
                self.finish, self.stop_token = delta.finish_reason, delta.stop_token
            elif done:
                self.finish = "stop"
        if delta.stats is not None:
            self.drafted = drafters_in(delta.stats)


class Ended(Protocol):
    """Who wants to know that a request has ended."""

    def __call__(self, watch: Watch, account: Account) -> None:
        """The record is complete."""


@dataclass
class Watch:
    """A request on its way. ``load``: sequences in flight when it began."""

    facts: Facts
    submissions: Sequence[Submission]
    stop: tuple[str, ...]
    hello: Hello
    load: int
    ended: Ended
    opted_out: bool = False
    choices: list[Choice] = field(default_factory=list)

    def __post_init__(self) -> None:
        """A choice for each submission."""
        self.choices = [Choice() for _ in self.submissions]

    def close(self, account: Account) -> None:
        """The request is over, however it ended."""
        self.ended(self, account)

    def bundle(self, index: int) -> AuditBundle:
        """Choice ``index`` with all that is needed to compute it again."""
        choice, submission = self.choices[index], self.submissions[index]
        return bundle_of(
            submission, self.hello, choice.tokens, choice.finish or "abort", choice.stop_token, stop=self.stop
        )


def bundle_of(
    submission: Submission,
    hello: Hello,
    tokens: list[int],
    finish: FinishReason,
    stop_token: int | None,
    **more: Any,
) -> AuditBundle:
    """An answer to ``submission``. Its id is the submission's, which is unique, whatever a client calls its request."""
    decision = submission.decision
    return AuditBundle(
        submission.id,
        hello.model.fingerprint,
        hello.numerics,
        submission.prompt,
        tokens,
        finish,
        submission.params,
        submission.seed,
        submission.choice,
        decision.route,
        decision.revision,
        stop_token=stop_token,
        drafters=decision.drafters,
        **more,
    )


def drafters_in(stats: SequenceStats) -> tuple[str, ...]:
    """The drafters that drafted for a sequence."""
    return tuple(counts.drafter for counts in stats.drafts)
