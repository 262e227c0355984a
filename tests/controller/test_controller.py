import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from specproxy.engine.controller import Candidate, Choice, Controller, Request
from specproxy.engine.costs import CostTable
from specproxy.engine.evidence import MAX_GROUPS, PROBE_RARELY
from specproxy.vocabulary import Decision

Make = Callable[..., CostTable]
Decide = Callable[..., Decision]
RATES = (0.05, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.96)


def teach(
    controller: Controller, drafter: str, rate: float, bucket: int = 0, group: str = "g", steps: int = 200
) -> None:
    """Let the controller see chains of 8 that are accepted at ``rate`` per token."""
    rng = random.Random(3)
    for _ in range(steps):
        accepted = 0
        while accepted < 8 and rng.random() < rate:
            accepted += 1
        controller.observe(group, drafter, bucket, 8, accepted)


@pytest.mark.parametrize("cost", [0.0, 0.05, 0.15, 0.35])
def test_switching_workloads_run_near_the_oracle(game: Any, cost: float) -> None:
    """Over many segments of changing acceptance the controller reaches 95 % of the best constant K of each."""
    scores = []
    for seed in range(2):
        rates = random.Random(seed).choices(RATES, k=24)
        played = game(cost).play(rates, seed=seed)
        scores.append(played.oracle / played.used)
    assert sum(scores) / len(scores) >= 0.95


@pytest.mark.parametrize("cost", [0.0, 0.05, 0.15, 0.35])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.2, 0.3])
def test_a_hopeless_drafter_never_costs_three_percent(game: Any, cost: float, rate: float) -> None:
    """However bad the drafts and dear the drafter, speed stays above 97 % of plain decoding, start included."""
    played = game(cost).play([rate] * 3, seed=5)
    assert played.tokens / played.used >= 0.97


def test_probes_of_a_hopeless_drafter_cost_less_than_one_percent(game: Any) -> None:
    """Once K is 0, single-token probes become rarer while they fail."""
    played = game(0.15).play([0.0] * 5)
    late = played.choices[400:]
    assert all(k == 0 or (k == 1 and probe) for _, k, probe in late)
    probes = [i for i, (_, k, _) in enumerate(late) if k]
    assert probes
    assert len(probes) * 0.16 < 0.01 * len(late)
    assert min(b - a for a, b in pairwise(probes)) >= PROBE_RARELY


def test_a_drafter_that_gets_better_is_found_again(game: Any) -> None:
    """After a hopeless stretch probes succeed, and drafting is back within a few dozen steps."""
    played = game(0.15).play([0.0, 0.9])
    started = next(i for i, (_, k, probe) in enumerate(played.choices) if i > 400 and k > 1 and not probe)
    assert started - 400 < 120


def test_the_same_observations_lead_to_the_same_choices(game: Any) -> None:
    """Nothing is drawn at random."""
    assert game(0.15).play([0.5, 0.1], steps=60).choices == game(0.15).play([0.5, 0.1], steps=60).choices


def test_k_follows_acceptance_and_cost(make: Make, clock: Any, decide: Decide) -> None:
    """Better drafts are drafted longer, dearer ones shorter."""
    lengths = {}
    for cost in (0.05, 0.35):
        for rate in (0.5, 0.9):
            controller = Controller(make(cost), clock)
            teach(controller, "draft_model", rate)
            lengths[cost, rate] = controller.choose("g", decide(), [Candidate("draft_model", 12)], 1).k
    assert lengths[0.05, 0.5] < lengths[0.05, 0.9]
    assert lengths[0.35, 0.9] < lengths[0.05, 0.9]
    assert 0 <= lengths[0.35, 0.5] < lengths[0.35, 0.9]


def test_a_fixed_k_is_drafted_as_it_is(make: Make, clock: Any, decide: Decide) -> None:
    """Without adaptation K is the policy's, whatever it yields, cut only to what the row can take."""
    controller = Controller(make(0.35), clock)
    teach(controller, "draft_model", 0.0)
    fixed = decide(adaptive=False, k_min=5, k_max=5, auto=False)
    assert controller.choose("g", fixed, [Candidate("draft_model", 12)], 1).k == 5
    assert controller.choose("g", fixed, [Candidate("draft_model", 3)], 1).k == 3


def test_a_minimum_rules_out_zero_for_gain_but_not_for_want_of_a_guess(make: Make, clock: Any, decide: Decide) -> None:
    """With k.min the controller drafts at least that, cut to the guess; with no candidate it drafts nothing."""
    controller = Controller(make(0.35), clock)
    teach(controller, "draft_model", 0.0)
    ranged = decide(k_min=4, k_max=8)
    assert controller.choose("g", ranged, [Candidate("draft_model", 12)], 1).k == 4
    assert controller.choose("g", ranged, [Candidate("draft_model", 2)], 1).k == 2
    assert controller.choose("g", ranged, [Candidate("draft_model", 0)], 1) == Choice(None, 0)
    assert controller.choose("g", ranged, [], 1) == Choice(None, 0)


def test_a_maximum_binds(make: Make, clock: Any, decide: Decide) -> None:
    """K never exceeds the policy's limit or the candidate's."""
    controller = Controller(make(0.01), clock)
    teach(controller, "draft_model", 1.0)
    assert controller.choose("g", decide(k_max=6), [Candidate("draft_model", 12)], 1).k == 6
    assert controller.choose("g", decide(), [Candidate("draft_model", 7)], 1).k == 7


def test_in_an_ordered_list_the_first_likely_guess_wins(make: Make, clock: Any, decide: Decide) -> None:
    """Order beats gain, but a guess that is more likely wrong than right gives way."""
    controller = Controller(make(0.05), clock)
    both = [Candidate("ngram", 12, 1, known=True, prior=0.6), Candidate("draft_model", 12)]
    teach(controller, "ngram", 0.6, bucket=1)
    teach(controller, "draft_model", 0.95)
    ordered = decide(auto=False)
    assert controller.choose("g", ordered, both, 1).drafter == "ngram"
    assert controller.choose("g", decide(), both, 1).drafter == "draft_model"
    teach(controller, "ngram", 0.1, bucket=1)
    assert controller.choose("g", ordered, both, 1).drafter == "draft_model"
    teach(controller, "draft_model", 0.2)
    assert controller.choose("g", ordered, both, 1).k > 0


def test_a_later_drafter_of_an_ordered_list_is_not_probed(make: Make, clock: Any, decide: Decide) -> None:
    """While the first has good guesses, the list's order leaves no room for experiments."""
    controller = Controller(make(0.05), clock)
    both = [Candidate("ngram", 12, known=True), Candidate("draft_model", 12)]
    for _ in range(300):
        choice = controller.choose("g", decide(auto=False), both, 1)
        assert choice.drafter == "ngram"
        controller.observe("g", "ngram", 0, choice.k, choice.k)


def test_auto_finds_the_better_drafter_by_itself(make: Make, clock: Any, decide: Decide) -> None:
    """A drafter that looks worse at first is probed, and taken once it proves better."""
    controller = Controller(make(0.05), clock)
    both = [Candidate("ngram", 12, known=True, prior=0.8), Candidate("draft_model", 12, prior=0.1)]
    rng, used = random.Random(2), []
    for _ in range(1500):
        choice = controller.choose("g", decide(), both, 1)
        rate, accepted = {"ngram": 0.5, "draft_model": 0.95, None: 0.0}[choice.drafter], 0
        while accepted < choice.k and rng.random() < rate:
            accepted += 1
        if choice.drafter is not None:
            controller.observe("g", choice.drafter, 0, choice.k, accepted)
        used.append(choice.drafter)
    assert used[:20].count("ngram") == 20
    assert used[-300:].count("draft_model") > 270


def test_known_guesses_are_judged_without_being_used(make: Make, clock: Any, decide: Decide) -> None:
    """A guess that was not verified still teaches: it is compared with what the row went on to say."""
    controller = Controller(make(0.0), clock)
    guess = [Candidate("ngram", 4, 2, known=True, prior=0.1)]
    for _ in range(60):
        controller.observe_guess("g", "ngram", 2, [1, 2, 3, 4], [1, 2])
    assert controller.choose("g", decide(), guess, 1).k == 4
    for _ in range(60):
        controller.observe_guess("g", "ngram", 2, [1, 2, 3, 4], [9])
    assert controller.choose("g", decide(), guess, 1).k <= 2


def test_confidence_buckets_and_groups_learn_apart(make: Make, clock: Any, decide: Decide) -> None:
    """What fails at one confidence or on one route says nothing of the others."""
    controller = Controller(make(0.1), clock)
    teach(controller, "draft_model", 0.0, bucket=0)
    teach(controller, "draft_model", 0.95, bucket=1)
    picks = [controller.choose("g", decide(), [Candidate("draft_model", 8, bucket)], 1).k for bucket in (0, 1)]
    assert picks[0] == 0
    assert picks[1] == 8
    assert controller.choose("other", decide(), [Candidate("draft_model", 8, 0)], 1).k > 0


def test_rows_of_a_batch_share_the_price_of_a_chain(make: Make, clock: Any, decide: Decide) -> None:
    """Eight rows draft together what none of them could pay for alone."""
    controller = Controller(make(0.5), clock)
    teach(controller, "draft_model", 0.8)
    request = Request("g", decide(), [Candidate("draft_model", 8)])
    choices = controller.plan([request] * 8, 8)
    assert all(choice.drafter == "draft_model" and choice.k >= 1 for choice in choices)
    assert controller.choose("g", decide(), [Candidate("draft_model", 8)], 8).k == 0


def test_each_row_of_a_batch_drafts_for_itself(make: Make, clock: Any, decide: Decide) -> None:
    """Good rows draft while hopeless ones run plain, in the same step."""
    controller = Controller(make(0.1), clock)
    teach(controller, "draft_model", 0.95, group="good")
    teach(controller, "draft_model", 0.0, group="bad")
    requests = [Request(group, decide(), [Candidate("draft_model", 8)]) for group in ("good", "bad") * 4]
    choices = controller.plan(requests, 8)
    assert [choice.k > 0 for choice in choices] == [True, False] * 4


def test_a_wide_batch_drafts_less(clock: Any, decide: Decide) -> None:
    """Where rows cost what they weigh, a full batch leaves no room for doubtful drafts."""
    controller = Controller(CostTable({1: 1.0, 8: 1.0, 16: 2.0, 64: 8.0}), clock)
    teach(controller, "ngram", 0.5)
    request = Request("g", decide(), [Candidate("ngram", 8, known=True)])
    assert controller.plan([request], 1)[0].k >= 5
    assert sum(choice.k for choice in controller.plan([request] * 16, 16)) == 0


def test_a_batch_never_plans_for_less_than_plain_decoding(make: Make, clock: Any, decide: Decide) -> None:
    """Whatever the mixture of routes, the plan promises at least what plain decoding does."""
    rng = random.Random(4)
    for cost in (0.05, 0.2, 0.6):
        table = make(cost)
        controller = Controller(table, clock)
        for group in "abcd":
            teach(controller, "draft_model", rng.random(), group=group)
            teach(controller, "ngram", rng.random(), group=group)
        for _ in range(50):
            requests = [
                Request(
                    rng.choice("abcd"),
                    decide(),
                    [Candidate("ngram", rng.randint(1, 8), known=True), Candidate("draft_model", 8)],
                )
                for _ in range(rng.randint(1, 10))
            ]
            choices = controller.plan(requests, len(requests))
            if any(choice.probe for choice in choices):
                continue
            chains = [choice.k for choice in choices if choice.drafter == "draft_model"]
            seconds = table.step(len(choices) + sum(choice.k for choice in choices))
            seconds += table.chain("draft_model", len(chains), max(chains, default=0))
            plain = len(choices) / table.step(len(choices))
            assert sum(choice.expected for choice in choices) / seconds >= plain * 0.99


def test_a_failed_drafter_is_tried_afresh_after_a_minute(make: Make, clock: Any, decide: Decide) -> None:
    """Traffic changes with time, so that rarer probes become usual ones again when time has passed."""

    def until_probe(controller: Controller) -> int:
        for step in range(1, 200):
            choice = controller.choose("g", decide(), [Candidate("draft_model", 8)], 1)
            if choice.probe:
                controller.observe("g", "draft_model", 0, choice.k, 0)
                return step
        return 0

    controller = Controller(make(0.05), clock)
    teach(controller, "draft_model", 0.0)
    waits = [until_probe(controller) for _ in range(5)]
    assert waits[-1] >= PROBE_RARELY
    clock.now += 100
    assert until_probe(controller) < 25


def test_small_gains_do_not_make_k_flutter(make: Make, clock: Any, decide: Decide) -> None:
    """Between near-equal lengths the last one is kept."""
    controller = Controller(make(0.1), clock)
    rng, lengths = random.Random(1), []
    for _ in range(600):
        choice = controller.choose("g", decide(), [Candidate("draft_model", 12)], 1)
        accepted = 0
        while accepted < choice.k and rng.random() < 0.75:
            accepted += 1
        controller.observe("g", "draft_model", 0, choice.k, accepted)
        lengths.append(choice.k)
    changes = sum(a != b for a, b in pairwise(lengths[200:]))
    assert changes < 100


def test_memory_of_groups_is_bounded(make: Make, clock: Any, decide: Decide) -> None:
    """The groups unused for longest are forgotten first."""
    controller = Controller(make(0.1), clock)
    teach(controller, "draft_model", 0.0, group="kept")
    for i in range(MAX_GROUPS + 50):
        controller.observe(f"g{i}", "draft_model", 0, 4, 2)
        controller.choose("kept", decide(), [Candidate("draft_model", 8)], 1)
    assert len(controller._groups) == MAX_GROUPS
    assert "g0" not in controller._groups
    assert controller.choose("kept", decide(), [Candidate("draft_model", 8)], 1).k <= 1


def test_an_unloaded_drafter_is_forgotten(make: Make, clock: Any, decide: Decide) -> None:
    """Another drafter under the same name starts from its own prior and has no cost until measured."""
    controller = Controller(make(0.3), clock)
    teach(controller, "draft_model", 0.0)
    controller.forget("draft_model")
    assert controller.costs.chain("draft_model", 1, 4) == 0.0
    assert controller.choose("g", decide(), [Candidate("draft_model", 8)], 1).k > 0


def test_trees_are_weighed_by_what_they_cost(clock: Any, decide: Decide) -> None:
    """A tree whose rows are dear is drafted less deep than one whose rows are nearly free, and not at all where plain
    decoding is faster."""
    chosen = []
    for tree in (1.0, 1.6, 6.0):
        steps = {rows: 1 + 0.01 * (rows - 1) for rows in (1, 8, 64)}
        controller = Controller(CostTable(steps, {"draft_model": {(1, 1): 0.05, (1, 8): 0.4}}, tree), clock)
        for _ in range(200):
            controller.observe("g", "draft_model", 0, 6, 4)
        candidate = Candidate("draft_model", 8, width=3, nodes=24)
        chosen.append(controller.choose("g", decide(), [candidate], 1).k)
    assert chosen[0] >= chosen[1] > chosen[2] == 0


def test_what_must_be_taken_in_first_has_to_be_earned_back(clock: Any, decide: Decide) -> None:
    """A good drafter that lacks a long prompt is used where answers are long enough for it to pay, and not for a few
    tokens more, be it by the request's limit or by how long answers of the route are."""
    costs = CostTable({1: 1.0, 8: 1.1, 64: 2.0})
    costs.set_chain("draft_model", {(1, 1): 0.1, (1, 8): 0.8}, catch_up=0.01)
    controller = Controller(costs, clock)
    for group, length in (("short", 8), ("long", 600)):
        for _ in range(200):
            controller.observe(group, "draft_model", 0, 4, 3)
            controller.observe_answer(group, length)

    def k(group: str, behind: int, most: int) -> int:
        candidate = Candidate("draft_model", 8, behind=behind, most=most)
        return controller.choose(group, decide(), [candidate], 1).k

    assert k("short", 0, 1000) > 0
    assert k("short", 1000, 1000) == 0
    assert k("long", 1000, 1000) > 0
    assert k("long", 1000, 4) == 0
