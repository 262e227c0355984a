"""What is drafted in a step, as values: what host drafters guess, who drafts how much, and the drafts themselves."""

from __future__ import annotations

from dataclasses import dataclass, field

from specproxy.engine.controller import Choice
from specproxy.engine.sequence import Sequence


@dataclass
class Guess:
    """What a host drafter would say. ``bucket``: how sure it is, as in DraftBatch."""

    tokens: list[int]
    parents: list[int]
    bucket: int

    def cut(self, nodes: int) -> Guess:
        """Its first nodes."""
        return Guess(self.tokens[:nodes], self.parents[:nodes], self.bucket)


@dataclass
class Draft:
    """A row's draft tree. ``choice`` is ``None`` where nothing was drafted; ``said``: what host drafters guessed;
    ``kept``: the drafter's nodes that these are, where some were left out; ``added``: how many nodes at its end are
    those of ``extender`` instead."""

    tokens: list[int]
    parents: list[int]
    choice: Choice | None = None
    said: dict[str, Guess] = field(default_factory=dict)
    kept: list[int] | None = None
    added: int = 0
    extender: str = ""

    @property
    def own(self) -> int:
        """Nodes of the chosen drafter's."""
        return len(self.tokens) - self.added

    @property
    def levels(self) -> int:
        """Depth of the deepest of them."""
        depths = [0]
        for parent in self.parents[: self.own]:
            depths.append(depths[parent + 1] + 1)
        return max(depths)


NO_DRAFT = Draft([], [])


@dataclass
class Plan:
    """What a step is to draft, row by row. ``choices``: ``None`` for rows that have no drafter. ``said``: what host
    drafters guess for each row."""

    sequences: list[Sequence]
    choices: list[Choice | None]
    said: list[dict[str, Guess]]

    def guess(self, index: int) -> Guess | None:
        """What a host drafter guesses for a row that chose it, as much of it as was chosen."""
        choice = self.choices[index]
        found = None if choice is None or choice.drafter is None else self.said[index].get(choice.drafter)
        return None if choice is None or found is None else found.cut(choice.k)

    @property
    def guesses(self) -> list[Guess | None]:
        """Of every row."""
        return [self.guess(index) for index in range(len(self.sequences))]

    @property
    def drafting(self) -> set[str]:
        """The device drafters that rows chose."""
        pairs = zip(self.choices, self.said, strict=True)
        return {c.drafter for c, said in pairs if c is not None and c.drafter is not None and c.drafter not in said}
