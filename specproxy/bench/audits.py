"""What audits cost and what they find: ``specproxy bench --audits``. The cost is that of a server of our own
(``audit_cost``), the power that of the engine in this process (``audit_power``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from specproxy.bench import audit_cost, audit_power
from specproxy.bench.alone import AloneEngine
from specproxy.bench.arms import AUTO, OFF, Arm, parse_arm
from specproxy.bench.audit_cost import BUDGET, Cost
from specproxy.bench.audit_power import Auditor, Power, Ties
from specproxy.bench.field import Grid
from specproxy.bench.session import Plan, own_servers, surroundings
from specproxy.bench.stats import Ratio
from specproxy.bundle import Tolerance
from specproxy.config.schema import StartConfig

MOST_COST = 0.03
"""What auditing every answer may cost a user at half load."""


class Wanted(Struct, frozen=True):
    """Which halves are to be measured; ``most`` answers are looked through for a fault, for each seed."""

    cost: bool = True
    power: bool = True
    most: int = 1000


class AuditStudy(Struct, frozen=True):
    """All of it. ``tolerance``: what the second half took for rounding."""

    costs: list[Cost]
    powers: list[Power]
    ties: list[Ties]
    tolerance: Tolerance | None
    facts: dict[str, Any]

    @property
    def faults(self) -> list[str]:
        """What must not be: a false alarm, a fault that is not found, an answer that audits changed."""
        lines = [f"{ties.what}: {ties.hard} hard mismatches without a fault" for ties in self.ties if ties.hard]
        lines += [f"{power.fault}: not found in {power.answers} answers" for power in self.powers if power.missed]
        lines += [f"{cost.load} load: {cost.differing} answers differ" for cost in self.costs if cost.differing]
        return lines

    def to_json(self) -> str:
        """One line."""
        return msgspec.json.encode(self).decode()


def measurements(plan: Plan, wanted: Wanted) -> int:
    """How often ``done`` will be called."""
    cost, power = audit_cost.measurements(plan), audit_power.measurements(plan.repeats)
    return wanted.cost * cost + wanted.power * power


def run_audits(
    plan: Plan, config: StartConfig, wanted: Wanted, note: Callable[[str], None], done: Callable[[str], None]
) -> AuditStudy:
    """The halves that are wanted, one after the other. ``plan.arms``: those of ``audit_cost.arms_of``; its
    ``concurrency`` is that of the full load, its ``repeats`` the seeds of a fault. ``note`` is told what happens,
    ``done`` what was measured."""
    facts = surroundings()
    costs: list[Cost] = []
    powers: list[Power] = []
    ties: list[Ties] = []
    tolerance = None

    async def cost() -> list[Cost]:
        async with own_servers(plan, config, {}, note) as answerers:
            return await audit_cost.measure_cost(plan, answerers, done)

    if wanted.cost:
        costs = asyncio.run(cost())
    if wanted.power:
        auditor = Auditor(AloneEngine.load(config, note, config.drafters), plan.max_tokens)
        ties = audit_power.measure_ties(plan.records, auditor, [Arm(OFF, OFF), parse_arm(AUTO)], done)
        powers = audit_power.measure_power(plan.records, auditor, plan.repeats, wanted.most, done)
        tolerance = auditor.tolerance
    return AuditStudy(costs, powers, ties, tolerance, facts)


def study_grids(found: AuditStudy) -> list[Grid]:
    """The tables of what was measured."""
    grids = [costs_table(found.costs)] if found.costs else []
    return [*grids, powers_table(found.powers), ties_table(found.ties)] if found.powers else grids


def study_notes(found: AuditStudy, plan: Plan, wanted: Wanted) -> list[str]:
    """How the numbers were made."""
    lines = []
    if found.costs:
        arms = " and ".join(arm.name for arm in plan.arms)
        lines.append(
            f"cost: {len(plan.records)} prompts, {audit_cost.passes_of(plan)} passes, at most {plan.max_tokens} "
            f"tokens, over HTTP, arms {arms}; half: random arrivals at half of what one at a time makes; audits may "
            f"take {BUDGET:.0%} while users wait; ratios paired by prompt (throughput: by block); in time: audits that "
            "ended with their block"
        )
    if found.powers:
        lines.append(
            f"power: drafted as {AUTO}, T = 0.8, other seeds in each pass, at most {wanted.most} answers a seed; "
            "near-ties: temperatures as recorded"
        )
    if found.tolerance is not None:
        rates = found.tolerance
        lines.append(
            f"tolerance: eps {rates.eps:.3g}, spread {rates.spread:.3g}; on the texts that it was measured on, plain "
            f"decoding and the stock model differ in {rates.ties_greedy} of {rates.compared_greedy} tokens at T = 0, "
            f"and in {rates.ties_sampled} of {rates.compared_sampled} at T = 1"
        )
    return lines


def costs_table(costs: list[Cost]) -> Grid:
    """A row a load."""
    head = ["load", "answers", "tok/s of an answer", "audited [95 %]", "throughput [95 %]"]
    head += ["TTFT added, ms [95 %]", "TTFT p95, ms", "audited in time", "mark"]
    rows = []
    for cost in costs:
        added, mark = cost.ttft_added, MOST_COST if cost.load == "half" else BUDGET
        load = f"half, {cost.per_s:.2f} arrivals/s" if cost.per_s else f"full, {cost.at_once} at a time"
        rows.append(
            [
                load,
                str(cost.answers),
                f"{cost.tokens_per_s:.0f}",
                _ratio(cost.speed),
                _ratio(cost.throughput),
                f"{added.median:+.2f} [{added.low:+.2f}, {added.high:+.2f}]",
                f"{cost.ttft_p95[0]:.1f} against {cost.ttft_p95[1]:.1f}",
                f"{cost.in_time}/{cost.answers}",
                f"{1 - mark:.2f}: {_judged(cost.speed, 1 - mark)}",
            ]
        )
    return Grid("every answer audited against none, by load", head, rows)


def powers_table(powers: list[Power]) -> Grid:
    """A row a fault."""
    head = ["fault", "found", "answers until then", "mean", "expected", "answers", "accepted", "struck", "near-ties"]
    rows = []
    for power in powers:
        mean = power.answers / power.found if power.found else 0.0
        rows.append(
            [
                power.fault,
                ("yes" if power.found else "no") if power.seeds == 1 else f"{power.found}/{power.seeds} seeds",
                ", ".join(map(str, power.until)) or "-",
                f"{mean:.1f}" if power.found else "-",
                f"{power.expected:.1f}" if power.expected else "-",
                str(power.answers),
                str(power.accepted),
                str(power.struck),
                f"{power.explained}, {power.explained_expected:.1f} by rounding (p {power.excess:.2g})",
            ]
        )
    return Grid("answers until a fault is found, every one audited", head, rows)


def ties_table(ties: list[Ties]) -> Grid:
    """A row a pair of computations."""
    head = ["compared", "answers", "of them explained", "tokens", "explained", "share [95 %]", "by rounding", "hard"]
    rows = []
    for one in ties:
        share = f"{one.share.mean:.2%} [{one.share.low:.2%}, {one.share.high:.2%}]"
        affected = f"{one.affected} ({one.affected / one.answers:.0%})"
        expected = f"{one.expected:.1f}" if one.expected else "-"
        rows.append(
            [one.what, str(one.answers), affected, str(one.tokens), str(one.explained), share, expected, str(one.hard)]
        )
    return Grid("near-ties without a fault", head, rows)


def _judged(ratio: Ratio, mark: float) -> str:
    """Whether a ratio reaches its mark; "open" where it does not and its interval does."""
    return "held" if ratio.mean >= mark else "open" if ratio.high >= mark else "missed"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.mean:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
