"""Who wins a race, and what its winner's test says, on tables of times."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from specproxy.tune.choices import Choice
from specproxy.tune.race import (
    Entrant,
    Measure,
    Pair,
    Tally,
    confirm,
    drop_slower,
    least_pairs,
    prove,
    race,
)

NOW_S = 1.0
TOKENS = 100


class Table:
    """Pairs whose candidate is faster than what serves now by its entry, with noise of its own for each turn."""

    def __init__(self, gains: Mapping[int, float], spread: float = 0.05, seed: int = 0) -> None:
        self.gains = gains
        self.spread = spread
        self.seed = seed
        self.asked: list[tuple[int, int]] = []

    async def measure(self, choice: Choice, turn: int) -> Pair:
        """See Measure."""
        self.asked.append((choice.k_max, turn))
        noise = np.random.default_rng((self.seed, choice.k_max, turn)).normal() * self.spread
        candidate_s = NOW_S / float(np.exp(self.gains[choice.k_max] + noise))
        return Pair(Tally(TOKENS, candidate_s, 40, 80, 60), Tally(TOKENS, NOW_S, 100, 0, 0))


def entrants(number: int) -> list[Entrant]:
    """Choices that differ in K."""
    return [Entrant(Choice("d", 0, k)) for k in range(1, number + 1)]


async def run(found: Sequence[Entrant], measure: Measure, pairs: int, seed: int = 1, *, exact: bool = True) -> int:
    """The winner's K; 0 where nobody is left."""
    await race(found, measure, pairs, random.Random(seed), exact=exact)
    left = [entrant.choice.k_max for entrant in found if not entrant.out]
    assert len(left) <= 1
    return left[0] if left else 0


@pytest.mark.parametrize("best", [1, 4, 7])
async def test_the_fastest_wins(best: int) -> None:
    """Wherever it stands among the others."""
    table = Table({k: 0.3 - 0.1 * abs(k - best) for k in range(1, 8)})
    assert await run(entrants(7), table.measure, 100) == best


async def test_the_budget_holds_and_goes_to_the_best() -> None:
    """Every choice is measured, and the faster half of them longer, on the same turns."""
    table = Table({k: 0.05 * k for k in range(1, 9)}, spread=0.3)
    found = entrants(8)
    await run(found, table.measure, 60)
    assert len(table.asked) <= 60
    counts = {entrant.choice.k_max: entrant.speed.n for entrant in found}
    assert min(counts.values()) >= 1
    assert max(counts.values()) > 2 * min(counts.values())
    for k, count in counts.items():
        assert [turn for asked, turn in table.asked if asked == k] == list(range(count))


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 33])
async def test_the_least_budget_suffices(number: int) -> None:
    """A race of that many pairs has a winner, and takes no more of them."""
    table = Table(dict.fromkeys(range(1, number + 1), 0.1), spread=0.2)
    assert await run(entrants(number), table.measure, least_pairs(number)) > 0
    assert len(table.asked) <= least_pairs(number)


async def test_the_seed_decides_the_order_and_nothing_else() -> None:
    """The same seed measures in the same order; another one finds the same winner."""
    tables = [Table({k: 0.1 * k for k in range(1, 6)}) for _ in range(3)]
    winners = [await run(entrants(5), table.measure, 60, seed) for table, seed in zip(tables, (1, 1, 2), strict=True)]
    assert tables[0].asked == tables[1].asked
    assert tables[0].asked != tables[2].asked
    assert winners == [5, 5, 5]


async def test_who_answers_otherwise_leaves_however_fast() -> None:
    """Where answers are promised to be identical; a failed answer ends it on every route."""
    table = Table({1: 0.9, 2: 0.5, 3: 0.1})

    async def measure(choice: Choice, turn: int) -> Pair:
        pair = await table.measure(choice, turn)
        identical = 0 if choice.k_max == 1 else 1
        return Pair(pair.candidate, pair.control, 1, identical, "no memory" if choice.k_max == 2 else None)

    found = entrants(3)
    assert await run(found, measure, 30) == 3
    assert [entrant.out for entrant in found[:2]] == ["answers differ from what serves now", "failed: no memory"]
    assert await run(entrants(3), measure, 30, exact=False) == 1


async def test_nobody_may_be_left() -> None:
    """Then there is no winner."""

    async def measure(choice: Choice, turn: int) -> Pair:
        return Pair(Tally(), Tally(), error="broken")

    assert await run(entrants(3), measure, 30) == 0


def test_only_a_proof_takes_one_out_before_its_time() -> None:
    """Far behind with little noise is proven; close by, or seldom measured, is not."""
    far, near, seldom, best = entrants(4)
    noise = np.random.default_rng(0).normal(0, 0.02, 40).tolist()
    for entrant, gain, count in ((far, -0.5, 40), (near, 0.299, 40), (seldom, -0.5, 3), (best, 0.3, 40)):
        for value in noise[:count]:
            entrant.speed.add(gain + value)
    drop_slower([far, near, seldom, best], 0.01)
    assert [entrant.out for entrant in (far, near, seldom, best)] == ["proven slower than another", "", "", ""]


@pytest.mark.parametrize(("gain", "expected"), [(0.3, "proven"), (-0.2, "missed"), (0.03, "open")])
async def test_the_test_stops_when_it_knows(gain: float, expected: str) -> None:
    """A clear gain or loss takes a few pairs; one at the bound takes all of them and stays open."""
    table, entrant = Table({1: gain}), entrants(1)[0]
    assert await confirm(entrant, table.measure, 60, 0.03, exact=True) == expected
    assert (entrant.speed.n < 60) == (expected != "open")


async def test_too_few_prompts_prove_nothing() -> None:
    """However fast it looks."""
    table, entrant = Table({1: 1.0}, spread=0.01), entrants(1)[0]
    assert await confirm(entrant, table.measure, 9, 0.03, exact=True) == "open"


async def test_a_winner_that_answers_otherwise_fails_its_test() -> None:
    """At the first such answer."""

    async def measure(choice: Choice, turn: int) -> Pair:
        return Pair(Tally(10, 0.5, 5, 5, 5), Tally(10, 1.0, 10, 0, 0), identical=int(turn < 2))

    entrant = entrants(1)[0]
    assert await confirm(entrant, measure, 60, 0.03, exact=True) == "missed"
    assert entrant.speed.n == 3


async def test_a_choice_without_gain_is_seldom_proven() -> None:
    """Looking after every pair, as the test does, and stopping when it suits: five percent at most."""
    proven = 0
    for seed in range(200):
        table, entrant = Table({1: float(np.log(1.03))}, spread=0.2, seed=seed + 10), entrants(1)[0]
        proven += await confirm(entrant, table.measure, 100, 0.03, exact=True) == "proven"
    assert proven <= 10 + 9  # 5 % of 200, and three standard deviations
    assert prove(entrants(1)[0].speed, 0.03) == "open"
