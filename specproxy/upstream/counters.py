"""What upstreams count of their own speculation, in one form.

vLLM has counters for the whole engine at ``/metrics``; they are mirrored as they are. SGLang tells of a request in
``meta_info`` where that was asked for, llama.cpp in ``timings``; these are summed over the answers that went by here.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

_PREFIX = "vllm:spec_decode_num_"
_WHOLE = {"drafts": "drafts", "draft_tokens": "drafted", "accepted_tokens": "accepted"}
_PER_POSITION = "accepted_tokens_per_pos"


class SpecCounts(Struct):
    """Verifying steps that had a draft, drafted tokens, accepted ones, and these by depth (0: the first of a draft)."""

    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_at: list[int] = []

    def add(self, other: SpecCounts) -> None:
        """Sum up."""
        self.drafts += other.drafts
        self.drafted += other.drafted
        self.accepted += other.accepted
        for depth, count in enumerate(other.accepted_at):
            self._at(depth, count)

    def _at(self, depth: int, count: int) -> None:
        missing = depth + 1 - len(self.accepted_at)
        self.accepted_at.extend([0] * missing)
        self.accepted_at[depth] += count


def from_vllm(text: str) -> SpecCounts | None:
    """The counters in vLLM's ``/metrics``, summed over its engines; ``None`` where it does not speculate."""
    lines = [line for line in text.splitlines() if line.startswith(_PREFIX)]
    if not lines:
        return None
    counts = SpecCounts()
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            name = sample.name.removeprefix(_PREFIX).removesuffix("_total")
            if name in _WHOLE:
                field = _WHOLE[name]
                setattr(counts, field, getattr(counts, field) + int(sample.value))
            elif name == _PER_POSITION and sample.labels.get("position", "").isdecimal():
                depth = int(sample.labels["position"])
                counts.add(SpecCounts(accepted_at=[0] * depth + [int(sample.value)]))
    return counts


def from_answer(answer: dict[str, Any]) -> SpecCounts | None:
    """What an answer, or its last events, say: llama.cpp's ``timings``, SGLang's ``meta_info``; ``None``: nothing.

    SGLang's accept length counts the bonus token, so that what was accepted is one less in each step; how many tokens
    it drafted does not follow from what it says.
    """
    timings = answer.get("timings")
    if isinstance(timings, dict) and "draft_n" in timings:
        return SpecCounts(drafted=_count(timings["draft_n"]), accepted=_count(timings.get("draft_n_accepted")))
    infos = [answer.get("meta_info"), *_choices(answer)]
    found = [counts for info in infos if (counts := _from_meta_info(info)) is not None]
    if not found:
        return None
    for counts in found[1:]:
        found[0].add(counts)
    return found[0]


def _choices(answer: dict[str, Any]) -> list[Any]:
    choices = answer.get("choices")
    return (
        [choice.get("meta_info") for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    )


def _from_meta_info(info: object) -> SpecCounts | None:
    if not isinstance(info, dict) or "spec_verify_ct" not in info:
        return None
    steps, length = _count(info["spec_verify_ct"]), info.get("spec_accept_length")
    more = max(0.0, length - 1) if isinstance(length, int | float) else 0.0
    return SpecCounts(drafts=steps, accepted=round(steps * more))


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
