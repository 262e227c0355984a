"""Which rounds are captured, and which one serves a plan: decisions over the plan alone, as ``step_shapes.py`` makes
them for steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from typing import NamedTuple

from specproxy.drafters.forms import Form, chain
from specproxy.engine.drafts import Plan
from specproxy.engine.loaded import LoadedDrafters
from specproxy.engine.runner import GRAPHED_ROWS, Runner
from specproxy.engine.sequence import Sequence
from specproxy.engine.step import is_chain
from specproxy.engine.step_shapes import SHORT

MOST = 16
"""Tokens that a round commits to a lane at most; what the host gives has one fewer."""

DEEPEST = 7
"""Levels that are drafted in a round at most."""

FLAT = 3
"""Levels of the flatter of two trees that a route has: each is captured when it is first wanted. A lane's limit of
nodes cuts them."""

GIVEN = (7, 15)
"""Tokens of the host's that rounds are captured for; it may know more, which then wait for the next round."""

USUAL_LANES = 8
"""Lanes up to which a drafter's rounds are captured at start."""

WIDEST = 2
"""Children of a node at most: what is drawn on the device is the two best."""

LANES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of lanes that rounds are captured for. For several lanes, and where there are cut-offs, chains have an odd K,
as a graph takes a third of a second to capture; each lane's own K is a limit beneath it."""


class RoundKey(NamedTuple):
    """What a round is captured for. ``drafter``: who sits in the lanes; "" for nobody. ``form``: what it drafts;
    ``None``: nothing, it only takes in what was committed, and lanes verify up to ``given`` tokens of the host's.
    ``hidden``: states that are captured."""

    drafter: str
    lanes: int
    form: Form | None
    cutoffs: bool
    reach: int
    hidden: tuple[int, ...]
    given: int = 0

    @property
    def verified(self) -> Form | None:
        """What is verified in every lane; ``None``: nothing."""
        return chain(self.given) if self.form is None and self.given else self.form

    @property
    def levels(self) -> int:
        """Of what is verified."""
        return self.given if self.form is None else self.form.depth

    @property
    def drafted(self) -> int:
        """Levels that are drafted in the round."""
        return 0 if self.form is None else self.form.depth

    @property
    def nodes(self) -> int:
        """Tokens that are verified in a lane."""
        return self.given if self.form is None else len(self.form.parents)


class RoundShapes:
    """What rounds of a target with these drafters may be. ``pages``: of a lane at most."""

    def __init__(self, runner: Runner, loaded: LoadedDrafters) -> None:
        self._rules = runner.rules
        self._loaded = loaded
        self._max_len = runner.model.spec.max_len
        self._limit = self._max_len + runner.kv.page_size
        self.pages = -(-self._limit // runner.kv.page_size) + 1

    def of(self, plan: Plan, seated: str = "", behind: int = 0) -> RoundKey | None:
        """The round that serves ``plan``, whose sequences may be ``behind`` tokens further than the host knows;
        ``None`` where it is work for an ordinary step. ``seated``: the drafter that sits in the lanes now."""
        name, lanes = self._drafter(plan, seated), lanes_for(len(plan.sequences))
        if name is None or lanes is None or not all(map(_plain, plan.sequences)):
            return None
        cutoffs = any(map(_cuts_off, plan.sequences))
        form = self._form(plan, name, lanes, cutoffs) if plan.drafting else None
        given = self._given(plan, lanes, form)
        if given is None or (plan.drafting and form is None):
            return None
        hidden = self._loaded.hidden(plan.sequences) if name else ()
        key = RoundKey(name, lanes, form, cutoffs, 0, hidden, given)
        rows, end = lanes * (1 + key.nodes), max(len(s.tokens) for s in plan.sequences) + behind + 1 + key.nodes
        if self._rules.width(rows) != rows or end > self._max_len:
            return None
        return key._replace(reach=self._reach(end))

    def of_draft(self, name: str, sequences: Rows[Sequence], levels: int) -> RoundKey | None:
        """The draft of chains of at most so many tokens alone, which are verified in an ordinary step; ``None`` where
        the drafter does not draft in lanes, or there are no lanes for so many."""
        lanes = lanes_for(len(sequences))
        if lanes is None or not self._loaded.drafters[name].needs.lanes or not all(map(_plain, sequences)):
            return None
        most = self.deepest(lanes)
        form = self._loaded.for_lanes(name).form(min(most, levels | 1), DEEPEST, 1) if min(levels, most) > 0 else None
        end = max(len(s.tokens) for s in sequences) + 1 + most
        if form is None or end > self._max_len:
            return None
        return RoundKey(name, lanes, form, any(map(_cuts_off, sequences)), self._reach(end), ())

    def of_chains(self, drafter: str, lanes: int, k: int, context: int, *, cutoffs: bool = False) -> RoundKey:
        """Chains of ``k`` in contexts up to ``context``, for routes that have this device drafter alone. 0: nobody
        drafts; "": nor takes anything in."""
        form = self._loaded.for_lanes(drafter).form(k, k, 1) if k else None
        hidden = tuple(sorted(self._loaded.reads(drafter)))
        return RoundKey(drafter, lanes, form, cutoffs, self._reach(context), hidden)

    def usual(self, drafter: str, sequences: int) -> Iterator[RoundKey]:
        """What an ordinary run of up to so many sequences needs: chains of all lengths that ``of`` gives, with cut-offs
        and without, in contexts up to SHORT; and where there are host drafters, rounds over what they give."""
        for lanes in [count for count in LANES if count < 2 * sequences]:
            if drafter and lanes > USUAL_LANES:
                return
            for cutoffs in (False, True):
                nothing = self.of_chains(drafter, lanes, 0, 0, cutoffs=cutoffs)
                if not drafter or self._listens(drafter):
                    yield nothing
                    if self._loaded.hosts and lanes <= USUAL_LANES:
                        yield from (nothing._replace(given=given) for given in self.gives(lanes))
                few = range(1, self.deepest(lanes) + 1, 1 if lanes == 1 and not cutoffs else 2) if drafter else ()
                for k in [k for k in few if k <= self._loaded.drafters[drafter].needs.max_k]:
                    yield self.of_chains(drafter, lanes, k, 0, cutoffs=cutoffs)

    def may_follow(self, plan: Plan, key: RoundKey) -> bool:
        """Whether the round after ``key`` can be decided on before this one is read. What host drafters guess may then
        be about an older state of the text: as long as nobody chose it, that only delays its choice by a round."""
        if any(plan.guesses) or any(s.submission.params.logprobs is not None for s in plan.sequences):
            return False
        return key.hidden == tuple(sorted(self._loaded.reads(key.drafter)))

    @staticmethod
    def most(lanes: int) -> int:
        """Tokens that a round of so many lanes commits to each at most."""
        return min(MOST, GRAPHED_ROWS // lanes)

    @classmethod
    def deepest(cls, lanes: int) -> int:
        """Levels that a round of so many lanes drafts at most."""
        return min(DEEPEST, cls.most(lanes) - 1)

    @classmethod
    def gives(cls, lanes: int) -> list[int]:
        """How many tokens of the host's rounds of so many lanes verify in each, ascending."""
        most = cls.most(lanes) - 1
        return [count for count in GIVEN if count < most] + ([most] if most else [])

    def _drafter(self, plan: Plan, seated: str) -> str | None:
        """Who sits in the lanes: the device drafter that rows chose; where none did, one that takes in what is
        committed, so that it can go on at once; "" where there is none such, and nobody reads states; ``None`` where
        rows are not alike."""
        names = plan.drafting
        if len(names) > 1:
            return None
        if names:
            (name,) = names
            alike = all(name in s.decision.drafters for s in plan.sequences)
            return name if alike and self._loaded.drafters[name].needs.lanes else None
        common = [
            name
            for name in plan.sequences[0].decision.drafters
            if self._listens(name) and all(name in s.decision.drafters for s in plan.sequences)
        ]
        if common:
            return seated if seated in common else common[0]
        return None if self._loaded.hidden(plan.sequences) else ""

    def _listens(self, name: str) -> bool:
        """Whether a drafter in the lanes takes in what others drafted: heads do, which it costs little; a draft model
        would run for nothing."""
        drafter = self._loaded.drafters.get(name)
        return drafter is not None and drafter.needs.lanes and bool(drafter.needs.hidden)

    def _given(self, plan: Plan, lanes: int, form: Form | None) -> int | None:
        """Tokens of the host's that there is room for in every lane beside a draft of ``form``, whose room they share;
        ``None`` where there is none, or they branch."""
        guesses = [guess for guess in plan.guesses if guess is not None]
        most = max((len(guess.tokens) for guess in guesses), default=0)
        if not most or not all(is_chain(guess.parents) for guess in guesses):
            return None if most else 0
        if form is not None:
            return 0 if form.is_chain else None
        sizes = self.gives(lanes)
        return next((count for count in sizes if count >= most), sizes[-1] if sizes else None)

    def _form(self, plan: Plan, name: str, lanes: int, cutoffs: bool) -> Form | None:
        """What every lane drafts."""
        most, room = self.deepest(lanes), GRAPHED_ROWS // lanes - 1
        asked = [choice.k for choice in plan.choices if choice is not None and choice.drafter == name]
        levels = min(most, max(asked))
        width = max(s.row(name).width for s in plan.sequences)
        if levels < 1:
            return None
        drafter = self._loaded.for_lanes(name)
        if width > 1:
            nodes = max(s.decision.tree_nodes for s in plan.sequences)
            deepest = max(s.decision.k_max or self._loaded.drafters[name].needs.max_k for s in plan.sequences)
            levels = FLAT if levels <= FLAT < deepest else min(most, deepest)
            return drafter.form(levels, min(room, nodes), min(width, WIDEST))
        if lanes > 1 or cutoffs:
            levels = min(most, levels | 1)
        return drafter.form(levels, levels, 1)

    def _reach(self, end: int) -> int:
        """Up to where the keys of a round may reach whose last position is below ``end``."""
        return min(SHORT, self._limit) if end <= SHORT else self._limit


def lanes_for(sequences: int) -> int | None:
    """The fewest lanes that hold so many; ``None`` where none do."""
    return next((count for count in LANES if count >= sequences), None)


def _plain(s: Sequence) -> bool:
    """Whether a sequence's tokens follow from logits, temperature, cut-offs and noise alone."""
    return len(s.pending) == 1 and not s.sampler.edits


def _cuts_off(s: Sequence) -> bool:
    """Whether a cut-off applies."""
    cut = s.sampler.cut
    return s.sampler.noise is not None and (cut.top_k > 0 or cut.top_p < 1.0 or cut.min_p > 0.0)
