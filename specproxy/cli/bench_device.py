"""The studies of ``specproxy bench`` that ask what the device allows and what the engine makes of it: steps, batch,
intervals, identity, audits. They import torch when they run."""

from __future__ import annotations

import argparse

import msgspec
from rich.console import Console

from specproxy.bench.arms import AUTO, OFF, parse_arm
from specproxy.bench.report import faults
from specproxy.bench.session import Plan, machine_notes
from specproxy.cli.bench_setup import names, scaled
from specproxy.cli.bench_show import print_grids, study_method, with_progress
from specproxy.config.schema import StartConfig

AT_ONCE = 8
"""Requests at a time of the full load of ``--audits``."""


def steps(args: argparse.Namespace, plan: Plan, config: StartConfig, console: Console, progress: Console) -> int:
    """How long a step takes, and each part of it. 0."""
    from specproxy.bench.roofline import parts_table
    from specproxy.bench.steps import CONTEXT, measure_all, measurements, steps_table

    contexts = list(dict.fromkeys([CONTEXT, *(args.context or [])]))
    found = with_progress(
        progress,
        measurements(config.model, contexts),
        lambda done: measure_all(config.model, contexts, plan.repeats, done),
    )
    speed = f"{found.device or 'this CPU'} reads {found.bandwidth / 1e9:.0f} GB/s in a plain sum"
    method = f"medians of {found.runs} runs in turns [p10-p90]; {speed}"
    products = ", ".join(f"{ratio:.3f} at {rows} row(s)" for rows, ratio in found.over_library.items())
    cost = [f"all products of a step take {products} of the library's, which promise no bits"] if products else []
    said = [*scaled(config), method, *cost, *machine_notes(found.facts)]
    print_grids(args, console, [steps_table(found), parts_table(found.parts, found.bandwidth)], said)
    if args.json:
        print(found.to_json())
    return 0


def batch(args: argparse.Namespace, plan: Plan, config: StartConfig, console: Console, progress: Console) -> int:
    """Throughput. 0: every answer is that of plain decoding; 1: some are not."""
    from specproxy.bench.alone import AloneEngine
    from specproxy.bench.batches import batches_table, check_sizes, choose, measurements, run_batches, with_room

    sizes = sorted(set(args.batch))
    arms = choose(names(args.arms or AUTO))
    check_sizes(plan, sizes)
    engine = AloneEngine.load(with_room(config, max(sizes)), progress.print, config.drafters)
    found = with_progress(
        progress, measurements(plan, sizes, arms), lambda done: run_batches(plan, engine, sizes, arms, done)
    )
    method = (
        f"{len(plan.records)} prompts of all categories, at most {plan.max_tokens} tokens, the engine in this process, "
        "closed loop; ratios: paired by block of prompts, geometric means; tokens/s with the prompts' own time"
    )
    said = [*scaled(config), method, *machine_notes(found.facts)]
    print_grids(args, console, [batches_table(found)], [*said, *faults(found.categories)])
    if args.json:
        print(found.to_json())
    return 1 if faults(found.categories) else 0


def intervals(args: argparse.Namespace, plan: Plan, config: StartConfig, console: Console, progress: Console) -> int:
    """Time between steps. 0: every answer is that of plain decoding; 1: some are not."""
    from specproxy.bench.alone import AloneEngine
    from specproxy.bench.batches import choose
    from specproxy.bench.intervals import intervals_table, measurements, run_intervals

    arms = choose(names(args.arms or AUTO))
    engine = AloneEngine.load(config, progress.print, config.drafters)
    found = with_progress(progress, measurements(plan, arms), lambda done: run_intervals(plan, engine, arms, done))
    print_grids(
        args, console, [intervals_table(found)], [*scaled(config), study_method(plan), *machine_notes(found.facts)]
    )
    if args.json:
        print(found.to_json())
    return 1 if any(pace.differing for pace in found.paces) else 0


def identity(args: argparse.Namespace, plan: Plan, config: StartConfig, console: Console, progress: Console) -> int:
    """On against off. 0: nothing differs; 1: something does."""
    from specproxy.bench.alone import AloneEngine
    from specproxy.bench.identity import choose, identity_table, measurements, run_identity, spread, verdict

    records = spread(plan.records, args.identity)
    engine = AloneEngine.load(config, progress.print, config.drafters)
    arms = choose(names(args.arms or ""), engine.drafters, engine.numerics)
    some = Plan(records=records, arms=[], repeats=plan.repeats, max_tokens=plan.max_tokens)
    found = with_progress(progress, measurements(records, arms), lambda done: run_identity(some, engine, arms, done))
    claim = f"{engine.numerics.exactness}, trees {'claimed' if engine.numerics.trees else 'not claimed'}"
    said = [
        *verdict(found),
        *scaled(config),
        f"{claim}; at most {plan.max_tokens} tokens an answer, the engine in this process",
        *machine_notes(found.facts),
    ]
    print_grids(args, console, [identity_table(found)], said)
    if args.json:
        print(found.to_json())
    return 1 if found.differing else 0


def audits(args: argparse.Namespace, plan: Plan, config: StartConfig, console: Console, progress: Console) -> int:
    """What audits cost and find. 0: every fault that had to be found was, and nothing else; 1: not so."""
    from specproxy.bench.audit_cost import arms_of
    from specproxy.bench.audits import AuditStudy, Wanted, measurements, run_audits, study_grids, study_notes

    base, asked = parse_arm(args.arms or OFF), args.concurrency or AT_ONCE
    wanted = Wanted(cost=args.audits != "power", power=args.audits != "cost", most=args.answers)
    several = msgspec.structs.replace(plan, arms=arms_of(base), concurrency=asked)
    found: AuditStudy = with_progress(
        progress,
        measurements(several, wanted),
        lambda done: run_audits(several, config, wanted, progress.print, done),
    )
    said = [*found.faults, *study_notes(found, several, wanted), *machine_notes(found.facts)]
    print_grids(args, console, study_grids(found), said)
    if args.json:
        print(found.to_json())
    return 1 if found.faults else 0
