"""From single measurements to what is reported, per category and arm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct

from specproxy.bench.arms import OFF, OFF_NUMERIC, Arm
from specproxy.bench.client import Answer
from specproxy.bench.runner import Measured
from specproxy.bench.stats import Ratio, median, paired_ratio
from specproxy.vocabulary import DraftCounts, DrafterInfo

ALL = "all"
"""The row over all categories."""
POSITIONS = 8
"""Positions of a draft whose acceptance is reported."""


class ArmSummary(Struct):
    """One arm in one category.

    ``tokens_per_s``: all tokens over all time. ``ratio`` against ``baseline`` (``None`` for itself), paired by block.
    Times in ms. ``accepted_length``: tokens per target step (the bonus token included). ``identical`` of ``compared``
    answers equal the bitwise plain ones, which is ``promised`` of bitwise servers; ``first_difference`` names one that
    does not. ``failed``: requests without an answer, ``error`` the first reason. ``conditional``: see ``conditional``.
    ``weight_bytes``, ``kv_bytes``: what the arm's drafter holds beside the target, ``None`` where no single one does.
    """

    arm: str
    requests: int
    failed: int
    tokens: int
    tokens_per_s: float
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    promised: bool = True
    baseline: str = ""
    ratio: Ratio | None = None
    accepted_length: float | None = None
    acceptance: float | None = None
    conditional: list[float | None] = []
    weight_bytes: int | None = None
    kv_bytes: int | None = None
    compared: int = 0
    identical: int = 0
    first_difference: str | None = None
    error: str | None = None


class CategorySummary(Struct):
    """All arms of one category, in the order in which they were named."""

    category: str
    prompts: int
    arms: list[ArmSummary]


def summarise(results: Sequence[Measured], arms: Sequence[Arm], *, exact: bool = True) -> list[CategorySummary]:
    """One summary per category, and one over all where there are several. ``exact``: the server says that it is."""
    categories = list(dict.fromkeys(result.block.category for result in results))
    summaries = [_category(name, [r for r in results if r.block.category == name], arms) for name in categories]
    if len(summaries) > 1:
        summaries.append(_category(ALL, results, arms))
    free = {arm.name for arm in arms if arm.numeric or arm.peer or not exact}
    for summary in summaries:
        for arm in summary.arms:
            arm.promised = arm.arm not in free
    return summaries


def add_memory(summaries: Sequence[CategorySummary], arms: Sequence[Arm], drafters: Sequence[DrafterInfo]) -> None:
    """Note what the drafters of the arms hold; a server that says nothing of it leaves the arms as they are."""
    infos = {info.name: info for info in drafters}
    held = {arm.name: infos[arm.drafter] for arm in arms if arm.drafter in infos}
    for summary in summaries:
        for arm in summary.arms:
            if arm.arm in held:
                arm.weight_bytes, arm.kv_bytes = held[arm.arm].weight_bytes, held[arm.arm].kv_bytes


def baseline_of(results: Sequence[Measured], arms: Sequence[Arm]) -> str:
    """The faster of the plain arms: whoever compares with the slower one flatters himself."""
    names = [arm.name for arm in arms if arm.is_baseline]
    if OFF_NUMERIC in names and OFF in names:
        logs = log_ratios(results, OFF_NUMERIC, OFF)
        if logs and sum(logs) > 0:
            return OFF_NUMERIC
    return OFF


def log_ratios(results: Iterable[Measured], arm: str, baseline: str) -> list[float]:
    """Per block of prompts, the mean over its repeats of log(speed of ``arm`` / speed of ``baseline``). Blocks in
    which either failed, or answered nothing, are left out."""
    speeds: dict[tuple[int, int], dict[str, float]] = {}
    for result in results:
        if not result.failed and result.tokens > 0:
            speeds.setdefault((result.block.number, result.block.repeat), {})[result.arm] = result.tokens_per_s
    by_number: dict[int, list[float]] = {}
    for (number, _), pair in speeds.items():
        if arm in pair and baseline in pair:
            by_number.setdefault(number, []).append(math.log(pair[arm] / pair[baseline]))
    return [sum(logs) / len(logs) for logs in by_number.values()]


def _category(name: str, results: Sequence[Measured], arms: Sequence[Arm]) -> CategorySummary:
    baseline = baseline_of(results, arms)
    reference = {
        (record.id, result.block.repeat): answer
        for result in results
        if result.arm == OFF
        for record, answer in zip(result.block.records, result.answers, strict=True)
    }
    prompts = {record.id for result in results for record in result.block.records}
    summaries = []
    for arm in arms:
        mine = [result for result in results if result.arm == arm.name]
        if not mine:
            continue
        summary = _arm(arm.name, mine)
        _compare(summary, mine, reference)
        summary.baseline = baseline
        logs = log_ratios(results, arm.name, baseline)
        if logs and arm.name != baseline:
            summary.ratio = paired_ratio(logs)
        summaries.append(summary)
    return CategorySummary(name, len(prompts), summaries)


def _arm(name: str, results: Sequence[Measured]) -> ArmSummary:
    answers = [answer for result in results for answer in result.answers]
    good = [answer for answer in answers if answer.error is None]
    whole = [result for result in results if not result.failed]
    tokens = sum(result.tokens for result in whole)
    seconds = sum(result.seconds for result in whole)
    ttfts = [answer.ttft_s * 1000 for answer in good if answer.ttft_s > 0]
    steps = sum(answer.steps for answer in good)
    drafted = sum(answer.drafted for answer in good)
    return ArmSummary(
        arm=name,
        requests=len(answers),
        failed=len(answers) - len(good),
        tokens=tokens,
        tokens_per_s=tokens / seconds if seconds else 0.0,
        ttft_p50_ms=median(ttfts),
        ttft_p95_ms=percentile_95(ttfts),
        accepted_length=sum(answer.tokens for answer in good) / steps if steps else None,
        acceptance=sum(answer.accepted for answer in good) / drafted if drafted else None,
        conditional=conditional(counts for answer in good for counts in answer.drafts) if drafted else [],
        error=next((answer.error for answer in answers if answer.error is not None), None),
    )


def conditional(drafts: Iterable[DraftCounts]) -> list[float | None]:
    """For draft positions 1 to ``POSITIONS`` the share that was accepted of those tried: behind an accepted draft, or
    first. ``None`` where nothing was tried.

    A draft that was accepted whole was not tried further, but counts here as far as others of the same answer drafted
    on: the numbers are exact where every draft is as long (a fixed K), and lower bounds where K adapts.
    """
    tried, accepted = [0] * POSITIONS, [0] * POSITIONS
    for counts in drafts:
        reached = [counts.steps, *counts.accepted_at]
        for i, right in enumerate(counts.accepted_at[:POSITIONS]):
            accepted[i] += right
        for i, drafted in enumerate(counts.drafted_at[:POSITIONS]):
            tried[i] += min(drafted, reached[i]) if i < len(reached) else 0
    return [right / of if of else None for right, of in zip(accepted, tried, strict=True)]


def percentile_95(values: Sequence[float]) -> float | None:
    """The nearest-rank 95th percentile, ``None`` of nothing."""
    if not values:
        return None
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def _compare(summary: ArmSummary, results: Sequence[Measured], reference: dict[tuple[str, int], Answer]) -> None:
    """Count the answers that equal those of the plain bitwise arm, prompt by prompt and repeat by repeat."""
    for result in results:
        for record, answer in zip(result.block.records, result.answers, strict=True):
            other = reference.get((record.id, result.block.repeat))
            if other is None or other.error is not None or answer.error is not None:
                continue
            summary.compared += 1
            if answer.same_as(other):
                summary.identical += 1
            elif summary.first_difference is None:
                summary.first_difference = f"{record.id}: {describe_difference(answer, other)}"


def describe_difference(answer: Answer, other: Answer) -> str:
    """Where two answers part, in words."""
    pairs = zip(answer.token_ids, other.token_ids, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if at is not None:
        return f"token {at} is {answer.token_ids[at]}, plain says {other.token_ids[at]}"
    if len(answer.token_ids) != len(other.token_ids):
        return f"{len(answer.token_ids)} tokens, plain has {len(other.token_ids)}"
    if answer.finish_reason != other.finish_reason:
        return f"finish_reason {answer.finish_reason}, plain says {other.finish_reason}"
    return "same token ids, other text"
