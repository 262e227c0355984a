"""One RequestRecord per request: filled in as things happen, then booked and logged once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec
import structlog

from specproxy.errors import RequestError
from specproxy.server.metrics import SHORT_REVISION, Metrics
from specproxy.vocabulary import Decision, RequestRecord, SequenceStats

CLIENT_CLOSED = 499
"""Status of a request whose client went away; nginx's number, as there is no official one."""

OFF = "off"


def allowed_drafters(decision: Decision) -> str:
    """The drafters that a decision allows, as label and header: names in order, or ``off``."""
    return ",".join(decision.drafters) or OFF


class Account:
    """The record of one request, and the clocks behind it. ``gaps``: seconds between tokens; ``on_close``: told when
    the record is complete."""

    def __init__(self, metrics: Metrics, request_id: str, endpoint: str, *, log_bodies: bool = False) -> None:
        self.started = time.perf_counter()
        self.record = RequestRecord(request_id, endpoint, "", "", "", "", "", 0, False, time.time())
        self.allowed = ""
        self.gaps: list[float] = []
        self.on_close: Callable[[Account], None] | None = None
        self._metrics = metrics
        self._log_bodies = log_bodies
        self._last: dict[int, float] = {}
        self._first_at = 0.0

    def decided(self, decision: Decision, *, model: str, seed: int, stream: bool, prompt_tokens: int) -> None:
        """The policy has spoken; from here on timings are booked under its labels."""
        record = self.record
        record.route, record.revision, record.rule = decision.route, decision.revision, decision.rule
        record.arm, record.reason = decision.arm, decision.reason
        record.model, record.seed, record.stream, record.prompt_tokens = model, seed, stream, prompt_tokens
        self.allowed = allowed_drafters(decision)
        where = (record.route, self.allowed, record.revision[:SHORT_REVISION])
        self._first_token = self._metrics.first_token.labels(*where)
        self._per_token = self._metrics.per_token.labels(*where)
        self._generation_tokens = self._metrics.generation_tokens.labels(*where)
        self._rate = self._metrics.rate.labels(*where)

    def tokens(self, index: int, count: int) -> None:
        """``count`` tokens of choice ``index`` arrived. A burst is one wait spread over its tokens."""
        if not count:
            return
        now = time.perf_counter()
        if self.record.ttft_s is None:
            self._first_at = now
            self.record.ttft_s = now - self.started
            self._first_token.observe(self.record.ttft_s)
        before = self._last.get(index)
        if before is not None:
            each = (now - before) / count
            for _ in range(count):
                self._per_token.observe(each)
            self.gaps.extend([each] * count)
        self._last[index] = now
        self.record.completion_tokens += count
        self._generation_tokens.inc(count)

    def add_stats(self, stats: Iterable[SequenceStats]) -> None:
        """What the engine reports of the request's sequences; drafters are summed over them by name."""
        record = self.record
        by_name = {counts.drafter: counts for counts in record.drafts}
        for item in stats:
            record.steps += item.steps
            record.queued_s = max(record.queued_s, item.queued_s)
            record.device_s += item.device_s
            record.reason = record.reason or item.reason
            for counts in item.drafts:
                total = by_name.setdefault(counts.drafter, type(counts)(counts.drafter))
                total.steps += counts.steps
                total.drafted += counts.drafted
                total.accepted += counts.accepted
                total.drafted_at = _sum(total.drafted_at, counts.drafted_at)
                total.accepted_at = _sum(total.accepted_at, counts.accepted_at)
        record.drafts = list(by_name.values())
        record.drafted = sum(counts.drafted for counts in record.drafts)
        record.accepted = sum(counts.accepted for counts in record.drafts)

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second after the first one of each choice; ``None`` where there are none, or where an upstream
        only said how many there were."""
        if not self._last:
            return None
        after_first = self.record.completion_tokens - len(self._last)
        if after_first <= 0 or (span := max(self._last.values()) - self._first_at) <= 0:
            return None
        return after_first / span

    @property
    def itl_p95_s(self) -> float | None:
        """95th percentile of the times between tokens; ``None`` where there are none."""
        return percentile_95(self.gaps) if self.gaps else None

    def body(self, direction: str, data: bytes) -> None:
        """Log what a client sent or got, where the configuration asks for it (log.bodies); never otherwise."""
        if self._log_bodies and data:
            text = data.decode(errors="replace")
            structlog.get_logger().info(f"body {direction}", request_id=self.record.request_id, body=text)

    def failed(self, error: RequestError) -> None:
        """The answer is this error."""
        self.record.status = error.status
        self.record.error = error.code or error.type

    def close(self) -> None:
        """The request is over: book it, log it."""
        record = self.record
        now = time.perf_counter()
        record.duration_s = now - self.started
        if (rate := self.tokens_per_s) is not None:
            self._rate.observe(rate)
        self._metrics.request_ended(record, self.allowed)
        structlog.get_logger().info("request", **log_fields(record))
        if self.on_close is not None:
            self.on_close(self)


def percentile_95(values: Sequence[float]) -> float:
    """The 95th percentile of some values: the least that so many of them do not exceed."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def log_fields(record: RequestRecord) -> dict[str, object]:
    """A record as one flat log line: short revision, rounded times, nothing that is empty."""
    fields: dict[str, object] = msgspec.structs.asdict(record)
    for name in ("started", "drafts"):
        del fields[name]
    fields["revision"] = record.revision[:SHORT_REVISION]
    for name, value in fields.items():
        if isinstance(value, float):
            fields[name] = round(value, 4)
    return {name: value for name, value in fields.items() if value not in ("", None, [], 0) or name == "status"}


def _sum(first: list[int], second: list[int]) -> list[int]:
    size = max(len(first), len(second))
    longer = [[*numbers, *[0] * (size - len(numbers))] for numbers in (first, second)]
    return [a + b for a, b in zip(*longer, strict=True)]
