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


@dataclass
class Draft:
    """A row's draft tree. ``choice`` is ``None`` where nothing was drafted; ``said``: what host drafters guessed;
    ``kept``: the drafter's nodes that these are, where some were left out."""

    tokens: list[int]
    parents: list[int]
    choice: Choice | None = None
    said: dict[str, Guess] = field(default_factory=dict)
    kept: list[int] | None = None

    @property
    def levels(self) -> int:
        """Depth of the deepest node."""
        depths = [0]
        for parent in self.parents:
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
