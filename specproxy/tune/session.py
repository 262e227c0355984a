"""One tuning: prompts to routes, then route by route a race and a test of its winner."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from specproxy.bench.records import Record
from specproxy.errors import InvalidRequest, StartError
from specproxy.gate.rules import ALPHA
from specproxy.policy.facts import extract_facts
from specproxy.policy.policy import CompiledRoute, PolicySet
from specproxy.policy.request_file import CHAT
from specproxy.tune.choices import Choice, choices, describe
from specproxy.tune.pairs import Pairs, make_blocks
from specproxy.tune.race import Entrant, confirm, least_pairs, race
from specproxy.vocabulary import Decision

if TYPE_CHECKING:
    from specproxy.bench.alone import AloneEngine

SEARCH_SHARE = 2 / 3
"""Of the pairs of a route, for the race; the rest is for the test of its winner."""

Verdict = Literal["faster", "likely", "keep"]


class Options(Struct, frozen=True, kw_only=True):
    """How much is measured. ``pairs``: of blocks, for each route; ``max_tokens`` of an answer; ``at_once``: prompts of
    a block; ``seed`` decides every order."""

    pairs: int = 300
    max_tokens: int = 256
    at_once: int = 1
    seed: int = 0


class Tried(Struct, frozen=True):
    """One choice as measured. ``ratio`` of tokens per second to what serves now, with its always-valid 95 % interval
    (``None`` before there is one); ``now_acceptance`` and ``now_tokens_per_step`` are those of what serves now."""

    setting: str
    speculate: str | dict[str, Any]
    pairs: int
    ratio: float | None
    low: float | None
    high: float | None
    acceptance: float | None
    tokens_per_step: float | None
    now_acceptance: float | None
    now_tokens_per_step: float | None
    answers: int
    identical: int
    out: str


class Tuned(Struct, frozen=True):
    """One route. ``winner``: of the race, as it did on the prompts that the race did not see (``None``: nothing was
    faster in the race). ``verdict``: faster (proven, by ``min_gain``), likely (as fast, not proven), keep what is."""

    route: str
    now: str
    searched: int
    held_out: int
    min_gain: float
    tried: list[Tried]
    winner: Tried | None
    choice: Choice | None
    verdict: Verdict
    reason: str


class Progress(Struct, frozen=True):
    """Who hears how far it is: of a route that begins, of each pair, of one that ends."""

    begin: Callable[[str, int], None]
    pair: Callable[[str], None]
    end: Callable[[], None]


def assign(policies: PolicySet, records: Sequence[Record], engine: AloneEngine) -> dict[str, list[Record]]:
    """The prompts of each route, by the set's own decision. Those that it refuses are nobody's.

    Raises StartError for a prompt that is no request.
    """
    found: dict[str, list[Record]] = {route.name: [] for route in policies.routes}
    for record in records:
        try:
            length = len(engine.submission(record, policies.routes[-1].decision, "", 1).prompt)
        except InvalidRequest as error:
            raise StartError(f"prompt {record.id}: {error.message}") from None
        body = record.body | {"model": record.body.get("model", engine.context.name)}
        try:
            verdict = policies.decide(extract_facts(CHAT, {}, body, prompt_tokens=length))
        except InvalidRequest:
            continue
        found[verdict.decision.route].append(record)
    return found


def split(records: Sequence[Record], rng: random.Random) -> tuple[list[Record], list[Record]]:
    """In random order: those for the race, and those for the test of its winner. One prompt alone serves for both."""
    shuffled = rng.sample(records, len(records))
    half = len(shuffled) // 2
    return (shuffled[:half], shuffled[half:]) if half else (shuffled, shuffled)


async def tune_route(
    engine: AloneEngine, route: CompiledRoute, records: Sequence[Record], options: Options, progress: Progress
) -> Tuned:
    """Search and test for one route with at least one prompt. Raises StartError where there are too few pairs."""
    rng = random.Random(f"{options.seed}#{route.name}")
    now = route.decision
    exact = engine.numerics.exactness != "numeric" and now.exactness == "bitwise"
    trees = engine.numerics.trees or not exact
    entrants = [Entrant(choice) for choice in choices(now, engine.drafters, trees=trees)]
    budget = int(options.pairs * SEARCH_SHARE)
    if budget < (needed := least_pairs(len(entrants))):
        needed = math.ceil(needed / SEARCH_SHARE)
        raise StartError(f"--pairs: {len(entrants)} settings for route {route.name} take {needed} or more; raise it")
    searched, held_out = split(records, rng)

    def pairs(stage: str, mine: Sequence[Record]) -> Pairs:
        blocks = make_blocks(mine, options.at_once)
        return Pairs(engine, now, blocks, stage=stage, max_tokens=options.max_tokens, rng=rng, done=progress.pair)

    progress.begin(route.name, options.pairs)
    search = pairs("search", searched)
    for entrant in entrants:
        await search.warm_up(entrant.choice)
    await race(entrants, search.measure, budget, rng, exact=exact)
    turns = min(options.pairs - budget, len(make_blocks(held_out, options.at_once)))
    min_gain = route.effective.settings.gate.min_gain
    winner, verdict, reason = await _test(entrants, pairs("test", held_out), turns, min_gain, exact=exact)
    progress.end()
    names = [info.name for info in engine.drafters]
    return Tuned(
        route=route.name,
        now=describe(now),
        searched=len(searched),
        held_out=len(held_out),
        min_gain=min_gain,
        tried=[tried_of(entrant, now, names) for entrant in sorted(entrants, key=_place)],
        winner=None if winner is None else tried_of(winner, now, names),
        choice=None if winner is None else winner.choice,
        verdict=verdict,
        reason=reason,
    )


async def _test(
    entrants: Sequence[Entrant], pairs: Pairs, turns: int, min_gain: float, *, exact: bool
) -> tuple[Entrant | None, Verdict, str]:
    """The race's winner on other prompts."""
    first = next((entrant for entrant in entrants if not entrant.out and entrant.speed.n), None)
    if first is None:
        return None, "keep", "nothing that was tried answered as it should"
    if first.speed.mean <= 0:
        return None, "keep", "nothing that was tried was faster"
    again = Entrant(first.choice)
    proof = await confirm(again, pairs.measure, turns, min_gain, exact=exact)
    return again, *judge(again, proof, min_gain)


def judge(winner: Entrant, proof: str, min_gain: float) -> tuple[Verdict, str]:
    """What the winner's test comes to, and in words."""
    if winner.out:
        return "keep", winner.out
    if proof == "proven":
        return "faster", f"proven faster by more than {min_gain:.0%}"
    if proof == "missed":
        return "keep", f"proven to be less than {min_gain:.0%} faster on other prompts"
    if winner.speed.mean >= math.log1p(min_gain):
        return "likely", f"not proven on {winner.speed.n} pairs: the gate will ask for more"
    return "keep", f"less than {min_gain:.0%} faster on other prompts"


def _place(entrant: Entrant) -> tuple[bool, int, float]:
    """The winner first, then who lasted longest, then who was faster."""
    return bool(entrant.out), -entrant.speed.n, -entrant.speed.mean


def tried_of(entrant: Entrant, now: Decision, drafters: Sequence[str]) -> Tried:
    """An entrant as it is reported."""
    speed, measured = entrant.speed, entrant.speed.n > 0
    low, high = (math.exp(end) if math.isfinite(end) else None for end in speed.interval(ALPHA))
    return Tried(
        setting=describe(entrant.choice.decision(now, drafters)),
        speculate=entrant.choice.speculate(),
        pairs=speed.n,
        ratio=math.exp(speed.mean) if measured else None,
        low=low,
        high=high,
        acceptance=entrant.candidate.acceptance,
        tokens_per_step=entrant.candidate.tokens_per_step,
        now_acceptance=entrant.control.acceptance,
        now_tokens_per_step=entrant.control.tokens_per_step,
        answers=entrant.answers,
        identical=entrant.identical,
        out=entrant.out,
    )


def changed(tuned: Sequence[Tuned]) -> list[Tuned]:
    """The routes for which a candidate is worth the gate's time."""
    return [item for item in tuned if item.verdict != "keep"]


def to_json(tuned: Sequence[Tuned], written: Sequence[str], facts: dict[str, Any]) -> str:
    """One line for machines."""
    return msgspec.json.encode({"routes": list(tuned), "written": list(written), **facts}).decode()
