"""Which drafter each row uses in the next step, and how many tokens it drafts: the goodput controller.

A step of a batch is worth (expected tokens of all rows) / (seconds of the target's step + seconds of the drafters'
chains). Each row takes the drafter and K that make this largest, given the other rows. What a drafter's chain costs is
shared by all rows that draft with it, so rows cannot decide one by one from nothing: they first decide as if all were
alike, then each once more given what the others chose; plain decoding for all is kept where it is worth as much.

Drafters that are not used are tried again now and then, from a budget of less than a percent of the time (see
``evidence``). A guess that is known anyway needs no trial: see ``observe_guess``.

Nothing here can change a word of an answer, and nothing is random: the same observations lead to the same choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from specproxy.engine.costs import CostTable
from specproxy.engine.evidence import DEFAULT_PRIOR, PROBE_EVERY, PROBE_SHARE, Group, Groups, Track
from specproxy.engine.goodput import Offer, Pick, StepLoad, lengths
from specproxy.vocabulary import MAX_TREE_NODES, Decision

HYSTERESIS = 1.01
"""A change must promise this factor, or noise in the estimates would make K flutter."""
LIKELY = 0.5
"""In an ordered list a guess whose first token is less likely than this gives way to a likelier one further down."""
PROBE_LOOK = 4
"""Rows between two looks at whether a probe can be afforded."""
LEAST_CHAIN = 1e-6
"""Seconds of a chain where a round took no longer than a step."""
PROBE_KNOWN = 2
"""Length of a probe whose guess is known; one that must be drafted is a single token."""


class Candidate(NamedTuple):
    """A drafter that could serve a row now.

    ``max_k``: levels it may draft, after window, remaining tokens, pages; the guess's length where ``known`` (the guess
    exists already and costs nothing more). ``prior``: ``Needs.prior`` of its confidence ``bucket``. ``width``:
    children of a node at most, 1 for a chain; ``nodes``: of all levels, at most. ``behind``:
    tokens that the drafter must take in first, which has to be earned back in what is left of the answer: it has
    ``so_far`` tokens, and may have ``most`` more.
    """

    drafter: str
    max_k: int
    bucket: int = 0
    known: bool = False
    prior: float = DEFAULT_PRIOR
    width: int = 1
    nodes: int = MAX_TREE_NODES
    behind: int = 0
    so_far: int = 0
    most: int = MAX_TREE_NODES


class Request(NamedTuple):
    """A row that asks for a drafter. ``candidates`` in the order of ``decision.drafters``, only those that could draft.

    ``group``: rows that share statistics (route and tenant).
    """

    group: str
    decision: Decision
    candidates: Sequence[Candidate]


class Choice(NamedTuple):
    """What a row does: draft ``k`` levels with ``drafter``, or nothing (``None``, 0).

    ``expected``: tokens that the row gains by the step on average, the bonus token included. ``nodes``: of the draft.
    """

    drafter: str | None
    k: int
    bucket: int = 0
    expected: float = 1.0
    probe: bool = False
    nodes: int = 0


PLAIN = Choice(None, 0)


@dataclass(slots=True)
class _Row:
    """A request on its way to a choice. ``free``: K = 0 may be chosen for gain. ``ordered``: the order counts."""

    group: Group
    offers: list[Offer]
    tracks: list[Track]
    free: bool
    ordered: bool
    pick: Pick = field(default_factory=Pick)
    probe: bool = False


class Controller:
    """Chooses drafters and K; learns from what it is told. ``clock`` in seconds. One thread."""

    def __init__(self, costs: CostTable, clock: Callable[[], float]) -> None:
        self.costs = costs
        self._clock = clock
        self._groups = Groups()

    def choose(self, group: str, decision: Decision, candidates: Sequence[Candidate], batch_rows: int) -> Choice:
        """The choice of one row in a step of ``batch_rows`` sequences whose other rows run plain."""
        return self.plan([Request(group, decision, candidates)], batch_rows)[0]

    def plan(self, requests: Sequence[Request], batch_rows: int) -> list[Choice]:
        """The choices of all rows that may draft, in order, in a step of ``batch_rows`` sequences, these included."""
        rows = [self._row(request) for request in requests]
        load = StepLoad.plain(self.costs, max(batch_rows, len(rows)))
        plain = load.rate()
        for row in rows:
            row.pick = _pick(row, load, len(rows))
        for row in rows:
            load.add(row.pick)
        if len(rows) > 1:
            for row in rows:
                load.remove(row.pick)
                row.pick = _pick(row, load, 1)
                load.add(row.pick)
            if load.rate() < plain:
                _give_up(rows, load)
        self._probe(rows, load, batch_rows)
        return [_settle(row) for row in rows]

    def worth(self, choice: Choice, rows: int) -> tuple[float, float]:
        """Chances of acceptance that pay for one more level of the chosen drafter's draft, and for one more node of a
        level, in a step of ``rows`` alike.

        They are what drafting and verifying a level, and verifying a node, cost, in tokens at the rate that the step is
        expected to run at.
        """
        if choice.drafter is None:
            return 0.0, 0.0
        costs, nodes, per_level = self.costs, choice.nodes, max(1, round(choice.nodes / choice.k))
        drafting = costs.chain(choice.drafter, rows, choice.k)
        dearer = costs.tree if nodes > choice.k else 1.0
        verifying = costs.step(rows * (nodes + 1)) * dearer
        rate = rows * choice.expected / (verifying + drafting)
        last = verifying - costs.step(rows * (nodes - per_level + 1)) * dearer
        level = drafting - costs.chain(choice.drafter, rows, choice.k - 1) + last
        return min(1.0, rate * level / rows), min(1.0, rate * last / (rows * per_level))

    def observe(self, group: str, drafter: str, bucket: int, drafted: int, accepted: int) -> None:
        """Of a chain of ``drafted`` tokens ``accepted`` were.

        A chain that was not rejected but cut short, because the answer ended, is reported as long as it got
        (``drafted == accepted``).
        """
        if drafted <= 0:
            return
        found = self._groups.get(group)
        found.credit += found.track(drafter, bucket).observe(drafted, accepted)

    def observe_tree(self, group: str, drafter: str, bucket: int, nodes: int, levels: int) -> None:
        """A tree of so many nodes on so many levels was drafted."""
        self._groups.get(group).track(drafter, bucket).grown(nodes, levels)

    def observe_guess(self, group: str, drafter: str, bucket: int, guess: Sequence[int], output: Sequence[int]) -> None:
        """A chain that was known before the step, used or not, against what the row's output turned out to be.

        Takes the place of ``observe`` for drafters whose guesses are free: ``guess`` may be longer than what was
        verified, and ``output`` (accepted tokens and the bonus token) tells more than the verified part did.
        """
        length = min(len(guess), len(output))
        accepted = 0
        while accepted < length and guess[accepted] == output[accepted]:
            accepted += 1
        self.observe(group, drafter, bucket, length, accepted)

    def observe_answer(self, group: str, tokens: int) -> None:
        """An answer ended with so many tokens."""
        self._groups.get(group).ended(tokens)

    def observe_step(self, rows: int, seconds: float, tree: bool = False) -> None:
        """A step of the target with ``rows`` rows took ``seconds``; ``tree``: some of its drafts branch."""
        self.costs.observe_step(rows, seconds, tree)

    def observe_chain(self, drafter: str, rows: int, k: int, seconds: float) -> None:
        """Drafting up to ``k`` tokens in each of ``rows`` sequences took ``drafter`` ``seconds``."""
        self.costs.observe_chain(drafter, rows, k, seconds)

    def observe_round(self, drafter: str, sequences: int, k: int, rows: int, seconds: float) -> None:
        """Drafting ``k`` tokens in each of ``sequences`` and the step over ``rows`` rows together took ``seconds``; at
        k 0 nothing was drafted."""
        if not k:
            self.observe_step(rows, seconds)
            return
        self.observe_chain(drafter, sequences, k, max(LEAST_CHAIN, seconds - self.costs.step(rows) * self.costs.drift))

    def forget(self, drafter: str) -> None:
        """The drafter was unloaded: another one may come under its name."""
        self.costs.drop_chain(drafter)
        self._groups.forget(drafter)

    def _row(self, request: Request) -> _Row:
        group, decision = self._groups.get(request.group), request.decision
        most, least, adaptive = decision.k_max, decision.k_min, decision.adaptive
        offers, tracks = [], []
        for drafter, max_k, bucket, known, prior, width, nodes, behind, so_far, most_left in request.candidates:
            high = max_k if most is None or most > max_k else most
            if high <= 0:
                continue
            low = max(1, min(least, high)) if adaptive else high
            track = group.track(drafter, bucket, prior)
            sticky = track.last_k if group.last == drafter else -1
            expected, spread = track.acceptance.expected(high), 1.0 if width == 1 else track.spread or float(width)
            debt = 0.0 if known or not behind else self.costs.catch_up(drafter, behind)
            term = max(1.0, group.left(so_far, most_left) / (1.0 + expected[high]))
            offers.append(
                Offer(drafter, bucket, known, lengths(low, high), expected, sticky, spread, nodes, debt, term)
            )
            tracks.append(track)
        return _Row(group, offers, tracks, adaptive and least <= 0, not decision.auto)

    def _probe(self, rows: Sequence[_Row], load: StepLoad, batch_rows: int) -> None:
        """Let at most one row try a drafter that was long unused, if what that may lose has been saved up."""
        probed = False
        income = PROBE_SHARE / max(1, batch_rows)
        for row in rows:
            row.group.earn(income)
            due = False
            for track in row.tracks:
                track.idle += 1
                due |= track.idle >= min(PROBE_EVERY, track.interval) and track.idle % PROBE_LOOK == 0
            if due and not probed:
                probed = self._try(row, load)

    def _try(self, row: _Row, load: StepLoad) -> bool:
        """Change the row's pick to the probe that loses least at worst, if the group can afford it."""
        now, before, usual = self._clock(), load.rate(), row.pick
        load.remove(usual)
        best, chosen, least = usual, None, row.group.credit
        for offer, track in _unused(row):
            if track.due(now):
                trial = Pick(offer, max(offer.lengths[0], min(offer.lengths[-1], PROBE_KNOWN if offer.known else 1)))
                loss = 1.0 - load.tokens / (load.seconds(trial) * before)
                if loss <= least:
                    best, chosen, least = trial, track, loss
        row.pick = best
        load.add(best)
        if chosen is None:
            return False
        row.probe = True
        chosen.probe(now, max(0.0, least))
        row.group.credit -= chosen.stake
        return True


def _settle(row: _Row) -> Choice:
    """Note what was chosen."""
    group, pick = row.group, row.pick
    offer = pick.offer
    if offer is None:
        group.last = None
        return PLAIN
    track = group.track(offer.drafter, offer.bucket)
    if row.probe:
        track.idle = 0
    else:
        track.chosen(pick.k)
        group.last = offer.drafter
    return Choice(offer.drafter, pick.k, offer.bucket, 1.0 + pick.gain, row.probe, offer.rows(pick.k))


def _pick(row: _Row, load: StepLoad, times: int) -> Pick:
    """The row's best part in the step, if ``times`` rows did the same and the others were as planned."""
    plain = load.rate() * (HYSTERESIS if row.group.last is None else 1.0) if row.free else 0.0
    best = Pick(rate=plain)
    for offer in row.offers:
        found = load.best(offer, times, HYSTERESIS)
        if row.ordered and found.rate > plain and offer.expected[1] >= LIKELY:
            return found
        if found.rate > best.rate:
            best = found
    return best


def _give_up(rows: Sequence[_Row], load: StepLoad) -> None:
    """Plain decoding for every row that may."""
    for row in rows:
        if row.free:
            load.remove(row.pick)
            row.pick = Pick()


def _unused(row: _Row) -> list[tuple[Offer, Track]]:
    """Offers that a probe may try instead of the pick; in an ordered list those that come before it."""
    out = []
    for offer, track in zip(row.offers, row.tracks, strict=True):
        if offer is not row.pick.offer:
            out.append((offer, track))
        elif row.ordered:
            break
    return out
