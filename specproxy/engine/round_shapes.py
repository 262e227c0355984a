"""Which rounds are captured, and which one serves a plan: decisions over the plan alone, as ``step_shapes.py`` makes
them for steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from typing import NamedTuple

from specproxy.drafters.forms import Form
from specproxy.engine.drafts import Plan
from specproxy.engine.loaded import LoadedDrafters
from specproxy.engine.runner import GRAPHED_ROWS, Runner
from specproxy.engine.sequence import Sequence
from specproxy.engine.step_shapes import SHORT

MOST = 8
"""Tokens that a round commits to a lane at most; a chain has one fewer."""

USUAL_LANES = 8
"""Lanes up to which a drafter's rounds are captured at start."""

WIDEST = 2
"""Children of a node at most: what is drawn on the device is the two best."""

LANES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of lanes that rounds are captured for. For several lanes, and where there are cut-offs, chains have an odd K,
as a graph takes a third of a second to capture; each lane's own K is a limit beneath it."""


class RoundKey(NamedTuple):
    """What a round is captured for. ``drafter``, ``form``: "" and ``None`` for plain decoding. ``hidden``: states that
    are captured."""

    drafter: str
    lanes: int
    form: Form | None
    cutoffs: bool
    reach: int
    hidden: tuple[int, ...]

    @property
    def levels(self) -> int:
        """Of the draft."""
        return 0 if self.form is None else self.form.depth

    @property
    def nodes(self) -> int:
        """Tokens that are drafted in a lane."""
        return 0 if self.form is None else len(self.form.parents)


class RoundShapes:
    """What rounds of a target with these drafters may be. ``pages``: of a lane at most."""

    def __init__(self, runner: Runner, loaded: LoadedDrafters) -> None:
        self._rules = runner.rules
        self._loaded = loaded
        self._max_len = runner.model.spec.max_len
        self._limit = self._max_len + runner.kv.page_size
        self.pages = -(-self._limit // runner.kv.page_size) + 1

    def of(self, plan: Plan, behind: int = 0) -> RoundKey | None:
        """The round that serves ``plan``, whose sequences may be ``behind`` tokens further than the host knows;
        ``None`` where it is work for an ordinary step."""
        name, lanes = self._drafter(plan), lanes_for(len(plan.sequences))
        if name is None or lanes is None or not all(map(_plain, plan.sequences)):
            return None
        cutoffs = any(map(_cuts_off, plan.sequences))
        form = self._form(plan, name, lanes, cutoffs) if name else None
        if name and form is None:
            return None
        rows = lanes * (1 + (len(form.parents) if form else 0))
        end = max(len(s.tokens) for s in plan.sequences) + behind + max(self.most(lanes), rows // lanes)
        if self._rules.width(rows) != rows or end > self._max_len:
            return None
        hidden = self._loaded.hidden(plan.sequences) if name else ()
        return RoundKey(name, lanes, form, cutoffs, self._reach(end), hidden)

    def of_draft(self, name: str, sequences: Rows[Sequence], levels: int) -> RoundKey | None:
        """The draft of chains of at most so many tokens alone, which are verified in an ordinary step; ``None`` where
        the drafter does not draft in lanes, or there are no lanes for so many."""
        lanes = lanes_for(len(sequences))
        if lanes is None or not self._loaded.drafters[name].needs.lanes or not all(map(_plain, sequences)):
            return None
        most, end = self.most(lanes) - 1, max(len(s.tokens) for s in sequences) + MOST
        if min(levels, most) < 1 or end > self._max_len:
            return None
        form = self._loaded.for_lanes(name).form(min(most, levels | 1), MOST, 1)
        return RoundKey(name, lanes, form, any(map(_cuts_off, sequences)), self._reach(end), ())

    def of_chains(self, drafter: str, lanes: int, k: int, context: int, *, cutoffs: bool = False) -> RoundKey:
        """Chains of ``k`` in contexts up to ``context``, for routes that have this drafter alone. "": plain decoding,
        with k 0."""
        form = self._loaded.for_lanes(drafter).form(k, k, 1) if drafter else None
        hidden = tuple(sorted(self._loaded.reads(drafter)))
        return RoundKey(drafter, lanes, form, cutoffs, self._reach(context), hidden)

    def usual(self, drafter: str, sequences: int) -> Iterator[RoundKey]:
        """What an ordinary run of up to so many sequences needs: chains of all lengths that ``of`` gives, with cut-offs
        and without, in contexts up to SHORT."""
        for lanes in [count for count in LANES if count < 2 * sequences]:
            most = self.most(lanes) - 1
            if drafter and lanes > USUAL_LANES:
                return
            for cutoffs in (False, True):
                few = range(1, most + 1, 1 if lanes == 1 and not cutoffs else 2)
                levels = [k for k in few if k <= self._loaded.drafters[drafter].needs.max_k] if drafter else [0]
                for k in levels:
                    yield self.of_chains(drafter, lanes, k, 0, cutoffs=cutoffs)

    def may_follow(self, plan: Plan, key: RoundKey) -> bool:
        """Whether nothing that decides on the round after ``key`` needs to see this one."""
        drafters = self._loaded.drafters
        named = {name for s in plan.sequences for name in s.decision.drafters if name in drafters}
        if any(s.submission.params.logprobs is not None for s in plan.sequences):
            return False
        same = key.hidden == tuple(sorted(self._loaded.reads(key.drafter)))
        return same and all(drafters[name].needs.place == "device" for name in named)

    @staticmethod
    def most(lanes: int) -> int:
        """Tokens that a round of so many lanes commits to each at most."""
        return min(MOST, GRAPHED_ROWS // lanes)

    def _drafter(self, plan: Plan) -> str | None:
        """The drafter of all sequences, which drafts in lanes and has yet to do so; "" where nobody drafts, nor reads
        states; ``None`` where they are not alike."""
        names = {choice.drafter for choice in plan.choices if choice is not None and choice.drafter is not None}
        if len(names) > 1:
            return None
        if not names:
            return None if self._loaded.hidden(plan.sequences) else ""
        (name,) = names
        if not all(name in s.decision.drafters for s in plan.sequences) or any(name in said for said in plan.said):
            return None
        return name if self._loaded.drafters[name].needs.lanes else None

    def _form(self, plan: Plan, name: str, lanes: int, cutoffs: bool) -> Form | None:
        """What every lane drafts."""
        most, room = self.most(lanes) - 1, GRAPHED_ROWS // lanes - 1
        levels = min(most, max(choice.k for choice in plan.choices if choice is not None))
        width = max(s.row(name).width for s in plan.sequences)
        if levels < 1:
            return None
        drafter = self._loaded.for_lanes(name)
        if width > 1:
            nodes = max(s.decision.tree_nodes for s in plan.sequences)
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
