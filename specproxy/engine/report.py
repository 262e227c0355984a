"""What a sequence leaves behind: why it ended, what it counted; and the engine's step times."""

from __future__ import annotations

from collections import deque
from collections.abc import Set

from specproxy.engine.sequence import Sequence
from specproxy.vocabulary import FinishReason, SequenceStats

MAX_TIMES = 4096


class EngineTimes:
    """Step times since they were last taken: (kind, seconds); the oldest go first when nobody takes them."""

    def __init__(self) -> None:
        self._times: deque[tuple[str, float]] = deque(maxlen=MAX_TIMES)
        self.steps = 0

    def add(self, kind: str, seconds: float) -> None:
        """Note one step."""
        self.steps += kind != "draft"
        self._times.append((kind, seconds))

    def take(self) -> list[tuple[str, float]]:
        """All of them, once."""
        times = list(self._times)
        self._times.clear()
        return times


def finish_reason(s: Sequence, token: int, eos: Set[int], max_len: int) -> FinishReason | None:
    """Whether the token just committed ends the answer: end-of-sequence and stop ids before the limits."""
    params = s.submission.params
    if token in params.stop_token_ids or (token in eos and not params.ignore_eos):
        return "stop"
    if s.num_output >= params.max_tokens or len(s.tokens) >= max_len:
        return "length"
    return None


def finished_stats(s: Sequence) -> SequenceStats:
    """The sequence's counts as they stand."""
    stats = s.stats
    stats.prompt_tokens = s.num_prompt
    stats.drafts = list(s.counts.values())
    return stats
