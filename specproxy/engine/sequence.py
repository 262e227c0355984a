"""One sequence in the engine: what is committed, what is computed, where its KV is."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from specproxy.drafters.base import DraftRow
from specproxy.sampling.sampler import Sampler
from specproxy.vocabulary import Decision, DraftCounts, SequenceStats, Submission, TokenLogprob


@dataclass(eq=False)
class Sequence:
    """State of one submission.

    ``tokens``: prompt and committed output. ``computed``: how many of them have KV; the next token can be sampled when
    all but the last have. ``table``: pages of the KV. ``hashes``: prefix hashes of its full pages. ``arrival`` in
    seconds of the engine's clock. ``drafts`` has the drafter's view of the sequence, by
    drafter name; ``begun`` the drafters that have seen its committed tokens. ``announced``: whether the server was told
    that work on it begins.
    """

    submission: Submission
    decision: Decision
    sampler: Sampler
    arrival: float
    tokens: list[int]
    computed: int = 0
    table: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    started: bool = False
    announced: bool = False
    drafts: dict[str, DraftRow] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    counts: dict[str, DraftCounts] = field(default_factory=dict)
    stats: SequenceStats = field(default_factory=SequenceStats)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The submission's id."""
        return self.submission.id

    @property
    def num_prompt(self) -> int:
        """Prompt tokens."""
        return len(self.submission.prompt)

    @property
    def num_output(self) -> int:
        """Committed output tokens."""
        return len(self.tokens) - self.num_prompt

    @property
    def prefilling(self) -> bool:
        """Whether prompt tokens still lack KV."""
        return self.computed < self.num_prompt

    @property
    def user(self) -> bool:
        """Whether a user waits for it (background work never delays a user's)."""
        return self.submission.work == "user"

    @property
    def pending(self) -> Tokens[int]:
        """Committed tokens that lack KV: one in plain decoding, more after a resume."""
        return self.tokens[self.computed :]

    @property
    def group(self) -> str:
        """Whose statistics and indices it shares: its route's, within its tenant."""
        return f"{self.decision.route}\0{self.submission.salt}"

    def row(self, drafter: str) -> DraftRow:
        """The sequence as ``drafter`` sees it; the same object for the sequence's whole life."""
        row = self.drafts.get(drafter)
        if row is None:
            row = self.drafts[drafter] = DraftRow(
                seq_id=self.id,
                tokens=self.tokens,
                num_prompt=self.num_prompt,
                k=0,
                group=self.group,
                sampler=self.sampler,
                prediction=self.submission.prediction,
                pages=self.table,
            )
        return row

    def count(self, drafter: str, drafted: int, levels: int, accepted: int) -> None:
        """Book one step of ``drafter``: of ``drafted`` tokens on so many ``levels`` ``accepted`` stayed."""
        counts = self.counts.get(drafter)
        if counts is None:
            counts = self.counts[drafter] = DraftCounts(drafter)
        counts.steps += 1
        counts.drafted += drafted
        counts.accepted += accepted
        for column, depth in ((counts.drafted_at, levels), (counts.accepted_at, accepted)):
            column.extend([0] * (depth - len(column)))
            for i in range(depth):
                column[i] += 1
