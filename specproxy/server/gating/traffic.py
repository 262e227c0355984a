"""What routes did a short time back: the figures that an operator looks at, and the requests that a plan asks about."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from specproxy.policy.facts import Facts
from specproxy.server.accounting import Account
from specproxy.vocabulary import DraftCounts, RequestRecord

ENVELOPES = 512
"""Requests that are remembered, without their secrets, for as long as the server runs."""

MAX_TEXT = 2**23
"""Characters of prompts and predictions that are remembered in all."""

RECENT = 512
"""Answers of a route whose figures are kept."""

K_SPAN_S = 10.0
K_POINTS = 180

_SECRET = ("authorization", "api-key", "x-api-key", "cookie", "proxy-authorization")


@dataclass
class RouteTraffic:
    """One route's last answers. ``k``: (end of a short time, drafted tokens, steps with a draft)."""

    requests: int = 0
    ttft: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=8 * RECENT))
    drafts: deque[list[DraftCounts]] = field(default_factory=lambda: deque(maxlen=RECENT))
    k: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=K_POINTS))

    def add(self, record: RequestRecord, gaps: Sequence[float]) -> None:
        """An answer has ended."""
        self.requests += 1
        if record.ttft_s is not None:
            self.ttft.append(record.ttft_s)
        self.gaps.extend(gaps)
        self.drafts.append(record.drafts)
        if steps := sum(counts.steps for counts in record.drafts):
            self._add_k(record.drafted, steps)

    def _add_k(self, drafted: int, steps: int) -> None:
        end = math.ceil(time.time() / K_SPAN_S) * K_SPAN_S
        if self.k and self.k[-1][0] == end:
            _, before, others = self.k.pop()
            drafted, steps = drafted + before, steps + others
        self.k.append((end, drafted, steps))

    def depths(self) -> list[tuple[int, int]]:
        """Drafted and accepted tokens by depth, over the last answers."""
        columns: list[tuple[int, int]] = []
        for answer in self.drafts:
            for counts in answer:
                for depth, drafted in enumerate(counts.drafted_at):
                    accepted = counts.accepted_at[depth] if depth < len(counts.accepted_at) else 0
                    if depth == len(columns):
                        columns.append((0, 0))
                    columns[depth] = (columns[depth][0] + drafted, columns[depth][1] + accepted)
        return columns


class Traffic:
    """All routes' traffic, and the last requests of all."""

    def __init__(self) -> None:
        self.routes: dict[str, RouteTraffic] = {}
        self.recent: deque[Facts] = deque()
        self._text = 0

    def asked(self, facts: Facts) -> None:
        """A request came."""
        shown = {name: value for name, value in facts.headers.items() if name not in _SECRET}
        self.recent.append(replace(facts, headers=shown, override_body=None))
        self._text += _length(facts)
        while len(self.recent) > ENVELOPES or (self._text > MAX_TEXT and len(self.recent) > 1):
            self._text -= _length(self.recent.popleft())

    def ended(self, account: Account) -> None:
        """A request has ended with an answer."""
        self.routes.setdefault(account.record.route, RouteTraffic()).add(account.record, account.gaps)


def _length(facts: Facts) -> int:
    return len(facts.prompt) + len(facts.prediction or "")
