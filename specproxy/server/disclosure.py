"""What a response says of how it was made: headers when it begins, a ``specproxy`` object when it ends."""

from __future__ import annotations

from typing import Any

from specproxy.server.accounting import allowed_drafters
from specproxy.server.metrics import SHORT_REVISION
from specproxy.vocabulary import Decision, DraftCounts, DrafterInfo, RequestRecord
from specproxy.wire.frames import Hello


def exactness_of(decision: Decision, hello: Hello) -> str:
    """The rung that holds for a request: the engine's, or ``numeric`` where the route allows that."""
    return "numeric" if decision.exactness == "numeric" else hello.numerics.exactness


def allowed_k(decision: Decision, loaded: list[DrafterInfo]) -> str:
    """The range of K that a decision allows, as ``low-high``, or one number where it is fixed."""
    if not decision.drafters:
        return "0"
    limits = [info.max_k for info in loaded if info.name in decision.drafters]
    high = max(limits, default=0)
    if decision.k_max is not None:
        high = min(high, decision.k_max)
    low = min(decision.k_min, high) if decision.adaptive else high
    return str(high) if low == high else f"{low}-{high}"


def decision_headers(decision: Decision, seed: int, hello: Hello) -> dict[str, str]:
    """The headers that are known before the first token."""
    headers = {
        "x-specproxy-route": decision.route,
        "x-specproxy-rule": decision.rule,
        "x-specproxy-policy": decision.revision[:SHORT_REVISION],
        "x-specproxy-drafter": allowed_drafters(decision),
        "x-specproxy-k": allowed_k(decision, hello.drafters),
        "x-specproxy-seed": str(seed),
        "x-specproxy-exactness": exactness_of(decision, hello),
    }
    if decision.reason:
        headers["x-specproxy-reason"] = decision.reason
    return {name: header_safe(value) for name, value in headers.items()}


def header_safe(value: str) -> str:
    """A value without what a header cannot carry: line ends, control and non-ASCII characters become ``?``."""
    return "".join(c if " " <= c <= "~" else "?" for c in value)


def mean_accepted_length(steps: int, accepted: int) -> float:
    """Tokens a verifying step yields: the accepted ones and the bonus token, as vLLM counts it. 1 without drafts."""
    return round(1.0 + accepted / steps, 3) if steps else 1.0


def what_happened(record: RequestRecord) -> dict[str, Any]:
    """The ``specproxy`` object of a finished answer."""
    draft_steps = sum(counts.steps for counts in record.drafts)
    return {
        "route": record.route,
        "rule": record.rule,
        "policy": record.revision[:SHORT_REVISION],
        "seed": record.seed,
        "exactness": record.exactness,
        "reason": record.reason,
        "steps": record.steps,
        "drafted": record.drafted,
        "accepted": record.accepted,
        "mean_accepted_length": mean_accepted_length(draft_steps, record.accepted),
        "cached_tokens": record.cached_tokens,
        "drafters": [_drafter(counts) for counts in record.drafts],
        "timings": {
            "queued_ms": round(record.queued_s * 1e3, 3),
            "ttft_ms": None if record.ttft_s is None else round(record.ttft_s * 1e3, 3),
        },
    }


def _drafter(counts: DraftCounts) -> dict[str, Any]:
    return {
        "name": counts.drafter,
        "steps": counts.steps,
        "drafted": counts.drafted,
        "accepted": counts.accepted,
        "mean_accepted_length": mean_accepted_length(counts.steps, counts.accepted),
        "drafted_at": counts.drafted_at,
        "accepted_at": counts.accepted_at,
    }
