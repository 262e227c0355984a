"""Penalties and logit bias of one sequence: what its own text does to its logits.

A table with one entry per id that is biased or was seen; everything else keeps its logit. Following a path of drafted
tokens is push and pop on the same table, so every node of a draft sees its own history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from specproxy.vocabulary import SamplingParams


class Entries(NamedTuple):
    """Of each of the table's ``ids`` [M] how many ``times`` it is in the output, whether it is in the prompt, and its
    bias."""

    ids: np.ndarray
    times: np.ndarray
    prompt: np.ndarray
    bias: np.ndarray


class History:
    """The table. Entries stand in order of first use; capacity doubles.

    In float32 and in this order: repetition penalty (ids of prompt and output: positive logits are divided by it,
    others multiplied), frequency penalty times the number of occurrences in the output, presence penalty (ids of the
    output), bias.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._repetition = np.float32(params.repetition_penalty)
        self._frequency = np.float32(params.frequency_penalty)
        self._presence = np.float32(params.presence_penalty)
        self.penalises = (
            params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        )
        """Whether the logits depend on the text: without penalties tokens need not be pushed."""
        self.active = self.penalises or bool(params.logit_bias)
        seen = [t for t in dict.fromkeys(prompt) if 0 <= t < vocab_size] if params.repetition_penalty != 1.0 else []
        ids = list(dict.fromkeys([*seen, *params.logit_bias]))
        self._slots = {token: slot for slot, token in enumerate(ids)}
        self._given = len(ids)
        self._trail: list[int] = []
        capacity = max(64, 2 * len(ids))
        self._ids = np.zeros(capacity, np.int64)
        self._ids[: len(ids)] = ids
        self._count = np.zeros(capacity, np.float32)
        self._prompt = np.zeros(capacity, np.bool_)
        self._prompt[: len(seen)] = True
        self._bias = np.zeros(capacity, np.float32)
        self._bias[: len(ids)] = [params.logit_bias.get(token, 0.0) for token in ids]
        self._biased = bool(params.logit_bias)

    def push(self, tokens: Sequence[int]) -> None:
        """These tokens follow. Ids outside the vocabulary count nowhere."""
        for token in tokens:
            slot = self._slots.get(token)
            if slot is None:
                slot = self._add(token)
            self._trail.append(slot)
            if slot >= 0:
                self._count[slot] += 1

    def pop(self, n: int) -> None:
        """Take back the last n tokens. An entry that they had added is the newest when its count falls to 0."""
        for _ in range(n):
            slot = self._trail.pop()
            if slot >= 0:
                self._count[slot] -= 1
                if slot >= self._given and self._count[slot] == 0:
                    del self._slots[int(self._ids[slot])]

    def apply(self, x: np.ndarray) -> None:
        """Change x[V] float32 in place. Entries beyond its width are left out."""
        entries = self.entries(len(x))
        x[entries.ids] = self.changed(entries, x[entries.ids])

    def entries(self, width: int) -> Entries:
        """The table as it stands, for a row of ``width`` logits."""
        size = len(self._slots)
        columns = (self._ids[:size], self._count[:size], self._prompt[:size], self._bias[:size])
        if width < self._vocab_size:
            inside = columns[0] < width
            return Entries(*(column[inside] for column in columns))
        return Entries(*(column.copy() for column in columns))

    def changed(self, entries: Entries, values: np.ndarray) -> np.ndarray:
        """What ``values`` float32, the logits of ``entries.ids``, become."""
        _, times, prompt, bias = entries
        if self._repetition != 1.0:
            with np.errstate(over="ignore"):
                penalised = np.where(values > 0, values / self._repetition, values * self._repetition)
            values = np.where(prompt | (times > 0), penalised, values)
        if self._frequency != 0.0:
            values = values - self._frequency * times
        if self._presence != 0.0:
            values = values - self._presence * (times > 0)
        return values + bias if self._biased else values

    def _add(self, token: int) -> int:
        """A new entry for ``token``; -1 outside the vocabulary."""
        if not 0 <= token < self._vocab_size:
            return -1
        slot = len(self._slots)
        if slot == len(self._ids):
            self._ids, self._count, self._prompt, self._bias = (
                np.concatenate([column, np.zeros_like(column)])
                for column in (self._ids, self._count, self._prompt, self._bias)
            )
        self._slots[token] = slot
        self._ids[slot] = token
        return slot
