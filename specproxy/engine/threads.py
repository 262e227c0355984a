"""CPU threads of the engine: one number for narrow steps, another for wide ones.

A narrow step waits for memory, and a second thread brings it a quarter on idle cores. They are not idle: whenever the
server writes an event, one of the step's threads is off its core, and the other waits for it at the next of a hundred
barriers; over HTTP two threads on two cores were as fast as one, at twice the processor time. Wide steps (long drafts,
many sequences, prompts) are arithmetic and write less often for their length: they take every core.

The number is a function of the step's width, and the self-test compares widths under their own numbers, so a row's bits
cannot depend on it unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

NARROW_ROWS = 4
"""Widest step that one core fewer serves as well."""


@dataclass(frozen=True)
class Threads:
    """Threads by width of a step."""

    narrow: int
    wide: int

    @classmethod
    def choose(cls, wanted: int | Literal["auto"]) -> Threads:
        """The configured number for both; "auto": all that torch found, for narrow steps one fewer."""
        if wanted != "auto":
            return cls(wanted, wanted)
        found = torch.get_num_threads()
        return cls(max(1, found - 1), found)

    def enter(self, rows: int) -> None:
        """What follows on this thread is a step of so many rows."""
        wanted = self.narrow if rows <= NARROW_ROWS else self.wide
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)
