"""Who drafts what in the next step: every row its own drafter and K.

Host drafters are asked first: what they would say is known before the budget is chosen, and costs next to nothing.
Device drafters are asked only for the rows and lengths that the controller chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import Protocol, cast

from specproxy.drafters.base import ROOT, DraftBatch, DraftContext, Drafter, DraftRow, Extender
from specproxy.engine.controller import Candidate, Choice, Controller, Request
from specproxy.engine.costs import CostTable
from specproxy.engine.drafts import NO_DRAFT, Draft, Guess, Plan
from specproxy.engine.loaded import LoadedDrafters
from specproxy.engine.sequence import Sequence
from specproxy.engine.step import first_chain, is_chain
from specproxy.sampling.sampler import Sampler

Budget = Callable[[Sequence, int], int]
"""(sequence, wanted) -> nodes that it may draft now, at most ``wanted``, whatever the gain."""


class LaneDrafts(Protocol):
    """Drafts chains on the device."""

    def draft(self, name: str, sequences: Rows[Sequence], levels: int) -> list[list[int]] | None:
        """Chains of at most ``levels`` tokens, one a sequence; ``None`` where it cannot."""
        ...


class Drafting:
    """The drafters that are ``loaded``, and the controller that chooses among them."""

    def __init__(
        self, loaded: LoadedDrafters, controller: Controller, clock: Callable[[], float], *, trees: bool
    ) -> None:
        """``trees``: whether trees were proven bitwise."""
        self.loaded = loaded
        self._controller = controller
        self._clock = clock
        self._trees = trees

    @property
    def drafters(self) -> dict[str, Drafter]:
        """The loaded ones."""
        return self.loaded.drafters

    @property
    def costs(self) -> CostTable:
        """What steps and drafts cost."""
        return self._controller.costs

    def price(self, name: str, chains: Mapping[tuple[int, int], float], catch_up: float = 0.0) -> None:
        """What drafting was measured at (see CostTable.set_chain)."""
        if chains:
            self.costs.set_chain(name, chains, catch_up)

    def forget(self, name: str) -> None:
        """A drafter was unloaded."""
        self.loaded.forget(name)
        self._controller.forget(name)

    def plan(self, sequences: Rows[Sequence], budget: Budget) -> Plan:
        """Ask host drafters, then choose for every row."""
        planned = Plan(list(sequences), [None] * len(sequences), [{}] * len(sequences))
        active = [i for i, s in enumerate(sequences) if s.decision.drafters and len(s.pending) == 1]
        if not active:
            return planned
        rows = [sequences[i] for i in active]
        caps = {s.id: self._caps(s, budget) for s in rows}
        guesses = self._ask_host(rows, caps)
        requests = [Request(s.group, s.decision, self._candidates(s, caps[s.id], guesses.get(s.id, {}))) for s in rows]
        for i, s, choice in zip(active, rows, self._controller.plan(requests, len(sequences)), strict=True):
            planned.choices[i], planned.said[i] = choice, guesses.get(s.id, {})
        return planned

    def draft(self, plan: Plan, by_lanes: LaneDrafts | None = None) -> list[Draft]:
        """What was planned. ``by_lanes``: who drafts for drafters that do so on the device."""
        drafts = [NO_DRAFT] * len(plan.sequences)
        wanted: dict[str, list[int]] = {}
        for i, (s, choice, said) in enumerate(zip(plan.sequences, plan.choices, plan.said, strict=True)):
            if choice is None:
                continue
            drafts[i] = Draft([], [], None, said)
            guess = plan.guess(i)
            if guess is not None:
                drafts[i] = self._shape(s, guess.tokens, guess.parents, choice, said)
            elif choice.drafter is not None:
                wanted.setdefault(choice.drafter, []).append(i)
        for name, rows in wanted.items():
            if by_lanes is None or not self._ask_lanes(by_lanes, name, rows, plan, drafts):
                self._ask_device(name, rows, plan, drafts)
        return drafts

    def settle(self, sequence: Sequence, draft: Draft, path: Rows[int], output: Rows[int]) -> None:
        """Book how a draft fared. ``path``: its accepted nodes. ``output``: what the row commits; it also judges
        guesses that were not used."""
        choice = draft.choice
        for name, guess in draft.said.items():
            if is_chain(guess.parents):
                self._controller.observe_guess(sequence.group, name, guess.bucket, guess.tokens, output)
        if choice is None or choice.drafter is None:
            return
        levels, whole = draft.levels, len(path)
        path = [node for node in path if node < draft.own]
        row = sequence.row(choice.drafter)
        if row.width > 1:
            self._controller.observe_tree(sequence.group, choice.drafter, choice.bucket, draft.own, levels)
        if draft.own or not draft.added:
            sequence.count(choice.drafter, draft.own, levels, len(path))
        if draft.added:
            sequence.count(draft.extender, draft.added, draft.added, whole - len(path))
        row.path = path if draft.kept is None else [draft.kept[node] for node in path]
        if choice.drafter not in draft.said:
            # A draft that its drafter cut for lack of confidence counts as having failed at the cut: the estimate is
            # of what asking for K brings, and the cost table learns what asking for K costs.
            asked = min(row.k, levels + 1)
            self._controller.observe(sequence.group, choice.drafter, choice.bucket, asked, len(path))
        self.drafters[choice.drafter].commit(DraftContext([row]))

    def _caps(self, s: Sequence, budget: Budget) -> dict[str, int]:
        """Levels that each drafter of the sequence may draft: policy, own limit, window, what the answer still takes.

        How many nodes are possible is written to its rows.
        """
        decision = s.decision
        width = decision.tree_width if self._may_branch(s) else 1
        caps, nodes = {}, 0
        for name in decision.drafters:
            drafter = self.drafters.get(name)
            if drafter is None:
                continue
            limit = drafter.needs.max_k if decision.k_max is None else min(decision.k_max, drafter.needs.max_k)
            if drafter.needs.window is not None:
                limit = min(limit, drafter.needs.window - len(s.tokens))
            caps[name] = max(0, limit)
            s.row(name).width = width if drafter.needs.branches else 1
            nodes = max(nodes, limit * s.row(name).width)
        room = budget(s, min(decision.tree_nodes, nodes))
        for name in caps:
            s.row(name).room = room
        return {name: min(cap, room) for name, cap in caps.items() if min(cap, room) > 0}

    def _may_branch(self, s: Sequence) -> bool:
        """Whether trees keep the route's promise: they are proven, or it allows numeric."""
        return self._trees or s.decision.exactness == "numeric"

    def _ask_host(self, active: Rows[Sequence], caps: dict[str, dict[str, int]]) -> dict[str, dict[str, Guess]]:
        """What every host drafter says for the rows that may use it."""
        found: dict[str, dict[str, Guess]] = {}
        for name, drafter in self.drafters.items():
            if drafter.needs.place != "host":
                continue
            mine = [s for s in active if name in caps[s.id]]
            if not mine:
                continue
            rows = [self.loaded.row(s, name, caps[s.id][name]) for s in mine]
            batch, most = self.loaded.batch(name), self.loaded.max_rows
            for start in range(0, len(mine), most):
                self._read(drafter, rows[start : start + most], mine[start : start + most], batch, found)
        return found

    def _read(
        self,
        drafter: Drafter,
        rows: list[DraftRow],
        sequences: Rows[Sequence],
        batch: DraftBatch,
        found: dict[str, dict[str, Guess]],
    ) -> None:
        batch.clear(len(rows))
        drafter.propose(DraftContext(rows), batch)
        for i, s in enumerate(sequences):
            n = int(batch.n[i])
            if n:
                guess = Guess(batch.tokens[i, :n].tolist(), batch.parents[i, :n].tolist(), int(batch.bucket[i]))
                if s.sampler.constrained and is_chain(guess.parents):
                    # Cut already, so that the choice among guesses is by what of them can be drafted.
                    guess = guess.cut(len(legal_nodes(s.sampler, guess.tokens, guess.parents, range(n))))
                if guess.tokens:
                    found.setdefault(s.id, {})[drafter.name] = guess

    def _candidates(self, s: Sequence, caps: dict[str, int], guesses: dict[str, Guess]) -> list[Candidate]:
        """Drafters that could serve this row now, in the order of its decision."""
        out = []
        for name in s.decision.drafters:
            if name not in caps:
                continue
            guess = guesses.get(name)
            if guess is not None:
                prior = self.drafters[name].needs.prior[guess.bucket]
                out.append(Candidate(name, min(caps[name], len(guess.tokens)), guess.bucket, True, prior))
            elif self.drafters[name].needs.place == "device":
                needs = self.drafters[name].needs
                row = s.row(name)
                behind, most = self.loaded.behind(s, name), s.submission.params.max_tokens - s.num_output
                tree = (row.width, row.room)
                out.append(Candidate(name, caps[name], 0, False, needs.prior[0], *tree, behind, s.num_output, most))
        return out

    def _ask_lanes(self, by_lanes: LaneDrafts, name: str, wanted: Rows[int], plan: Plan, drafts: list[Draft]) -> bool:
        """Let a drafter draft chains on the device, in one piece, for the rows that chose it; whether it could."""
        choices = {i: choice for i in wanted if (choice := plan.choices[i])}
        sequences = [plan.sequences[i] for i in choices]
        if any(s.row(name).width > 1 for s in sequences):
            return False
        levels, began = max(choice.k for choice in choices.values()), self._clock()
        chains = by_lanes.draft(name, sequences, levels)
        if chains is None:
            return False
        self._controller.observe_chain(name, len(chains), levels, self._clock() - began)
        for (i, choice), tokens in zip(choices.items(), chains, strict=True):
            plan.sequences[i].row(name).k = choice.k
            kept = tokens[: choice.k]
            drafts[i] = Draft(kept, list(range(-1, len(kept) - 1)), choice, plan.said[i])
        return True

    def _ask_device(self, name: str, wanted: Rows[int], plan: Plan, drafts: list[Draft]) -> None:
        """Let a device drafter draft for the rows that chose it; its time goes into the cost table."""
        drafter, batch, most = self.drafters[name], self.loaded.batch(name), self.loaded.max_rows
        for start in range(0, len(wanted), most):
            asked = wanted[start : start + most]
            part = [(i, plan.sequences[i], choice) for i in asked if (choice := plan.choices[i])]
            rows = [self.loaded.row(s, name, choice.k) for _, s, choice in part]
            for row, (_, s, choice) in zip(rows, part, strict=True):
                row.room = min(row.room, choice.k * row.width)
                row.floor, row.keep = self._controller.worth(choice, len(part)) if s.decision.adaptive else (0.0, 0.0)
                row.least = s.decision.k_min
            batch.clear(len(rows))
            began = self._clock()
            drafter.propose(DraftContext(rows), batch)
            self._controller.observe_chain(name, len(rows), max(row.k for row in rows), self._clock() - began)
            for at, (i, s, choice) in enumerate(part):
                n = int(batch.n[at])
                if n:
                    tokens, parents = batch.tokens[at, :n].tolist(), batch.parents[at, :n].tolist()
                    drafts[i] = self._shape(s, tokens, parents, choice, plan.said[i])

    def _shape(
        self, s: Sequence, tokens: list[int], parents: list[int], choice: Choice, said: dict[str, Guess]
    ) -> Draft:
        """A tree where trees are proven or the route allows numeric, else its preferred chain; of either what a grammar
        allows, and behind a chain what it forces."""
        kept = list(range(len(tokens))) if is_chain(parents) or self._may_branch(s) else first_chain(parents)
        kept = legal_nodes(s.sampler, tokens, parents, kept)
        if len(kept) == len(tokens):
            return self._extended(s, Draft(tokens, parents, choice, said))
        places = {node: at for at, node in enumerate(kept)} | {ROOT: ROOT}
        draft = Draft([tokens[i] for i in kept], [places[parents[i]] for i in kept], choice, said, kept)
        return self._extended(s, draft)

    def _extended(self, s: Sequence, draft: Draft) -> Draft:
        """A chain with what a drafter of the sequence's can put behind it, as far as there is room."""
        choice, decision = draft.choice, s.decision
        if not s.sampler.constrained or choice is None or not is_chain(draft.parents):
            return draft
        for name in decision.drafters:
            if name == choice.drafter or name not in self.drafters or not self.drafters[name].needs.extends:
                continue
            row, most = s.row(name), len(draft.tokens)
            limit = row.room if decision.k_max is None else min(row.room, decision.k_max)
            added = cast(Extender, self.drafters[name]).extend(row, draft.tokens, limit - most)
            if added:
                parents = list(range(-1, most + len(added) - 1))
                return replace(draft, tokens=[*draft.tokens, *added], parents=parents, added=len(added), extender=name)
        return draft


def legal_nodes(sampler: Sampler, tokens: Rows[int], parents: Rows[int], nodes: Rows[int]) -> list[int]:
    """Those of ``nodes``, parents before children, that the grammar can reach: a draft is cut before the first token
    that it does not have, and behind the end of the answer."""
    if not sampler.constrained:
        return list(nodes)
    paths: dict[int, list[int]] = {ROOT: []}
    for node in nodes:
        path = paths.get(parents[node])
        if path is not None and sampler.allows(path, tokens[node]):
            paths[node] = [*path, tokens[node]]
    return [node for node in paths if node != ROOT]
