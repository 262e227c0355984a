"""The target's answers to many prompts at once: left-padded batches of similar length, rows that end drop out.

Sampling is plain (temperature alone): the answers are to be typical of the target, not those of a request.

Shapes: B rows, P prompt columns, M columns in all, n columns looked at, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specproxy.train.slots import WINDOW, Slots, grouped_attention
from specproxy.train.target import FrozenTarget

LOOK_EVERY = 8
"""Steps between looks whether rows have ended; each look waits for the device."""

KEEP_BELOW = 0.6
"""Share of rows still answering below which the others are dropped: it copies the cache."""

PROMPT_TOKENS = 1 << 17
"""Tokens of prompts computed at a time."""

ALIGNMENT = 16
"""Prompt columns are a multiple of it; masks of other sizes are copied before attention takes them."""


@dataclass(frozen=True)
class Question:
    """A prompt, and the temperature of the answer (0: greedy)."""

    ids: tuple[int, ...]
    temperature: float = 0.0


@torch.no_grad()
def answer(
    target: FrozenTarget,
    questions: Sequence[Question],
    *,
    max_new: int,
    batch_tokens: int,
    seed: int = 0,
    done: Callable[[int], None] = lambda _: None,
) -> list[tuple[int, ...]]:
    """An answer each, in order: ``max_new`` tokens at most, with the token that ends it if one did.

    ``batch_tokens``: rows times their longest possible length, for each batch. ``done`` is told how many were answered.
    """
    answers: list[tuple[int, ...]] = [()] * len(questions)
    with grouped_attention(target.model):
        for number, members in enumerate(_batches(questions, max_new, batch_tokens)):
            generator = torch.Generator(target.device).manual_seed(seed * 1_000_003 + number)
            batch = _Answering(target, [questions[i] for i in members], max_new, generator)
            for place, tokens in zip(members, batch.run(), strict=True):
                answers[place] = tokens
            done(len(members))
    return answers


def _batches(questions: Sequence[Question], max_new: int, batch_tokens: int) -> Iterator[list[int]]:
    """Places of questions, longest prompts first: what does not fit the memory fails at once, not after an hour."""
    order = sorted(range(len(questions)), key=lambda i: -len(questions[i].ids))
    while order:
        longest = len(questions[order[0]].ids) + max_new
        size = max(1, batch_tokens // longest)
        yield order[:size]
        order = order[size:]


class _Answering:
    """One batch being answered. Rows that have ended leave it; ``_rows`` [B] are the places of those that are left.

    ``_seen`` [B, M] bool: columns that hold a token of the row.
    """

    def __init__(
        self, target: FrozenTarget, questions: Sequence[Question], max_new: int, generator: torch.Generator
    ) -> None:
        self._target = target
        self._generator = generator
        self._max_new = max_new
        device, count = target.device, len(questions)
        width = -(-max(len(q.ids) for q in questions) // ALIGNMENT) * ALIGNMENT
        columns = -(-(width + max_new) // WINDOW) * WINDOW
        ids = torch.zeros(count, width, dtype=torch.int64)
        seen = torch.zeros(count, columns, dtype=torch.bool)
        for row, question in enumerate(questions):
            ids[row, width - len(question.ids) :] = torch.tensor(question.ids)
            seen[row, width - len(question.ids) : width] = True
        self._ids, self._seen = ids.to(device), seen.to(device)
        self._temperatures = torch.tensor([q.temperature for q in questions], device=device)
        self._eos = torch.tensor(target.eos_ids, dtype=torch.int64, device=device)
        self._rows = torch.arange(count, device=device)
        self._slots = Slots(target.config.num_hidden_layers, count, columns)

    def run(self) -> list[tuple[int, ...]]:
        """Every row's answer."""
        count, width = self._ids.shape
        said = torch.full((count, self._max_new), -1, dtype=torch.int64, device=self._ids.device)
        ended = torch.zeros(count, dtype=torch.bool, device=self._ids.device)
        positions = self._seen.sum(1, keepdim=True) - 1
        logits = self._prompts(positions)
        for step in range(self._max_new):
            tokens = self._pick(logits)
            said[self._rows, step] = torch.where(ended, -1, tokens)
            ended |= torch.isin(tokens, self._eos)
            if step + 1 == self._max_new:
                break
            if step % LOOK_EVERY == LOOK_EVERY - 1:
                left = (~ended).nonzero()[:, 0]
                if not len(left):
                    break
                if len(left) < KEEP_BELOW * len(ended):
                    tokens, positions, ended = tokens[left], positions[left], ended[left]
                    self._keep(left)
            positions = positions + 1
            logits = self._token(tokens, positions, width + step)
        return [tuple(t for t in row if t >= 0) for row in said.tolist()]

    def _keep(self, rows: Tensor) -> None:
        self._slots.keep(rows)
        self._seen, self._rows, self._temperatures = self._seen[rows], self._rows[rows], self._temperatures[rows]

    def _prompts(self, last: Tensor) -> Tensor:
        """Scores of the first answer tokens [B, V], some rows at a time. ``last`` [B, 1]: the last token's position."""
        count, width = self._ids.shape
        causal = torch.ones(width, width, dtype=torch.bool, device=self._ids.device).tril()
        itself = torch.eye(width, dtype=torch.bool, device=self._ids.device)
        places = torch.arange(width, device=self._ids.device) - (width - 1)
        size = max(1, PROMPT_TOKENS // width)
        logits = []
        for first in range(0, count, size):
            rows = slice(first, first + size)
            self._slots.cursor.prompt(rows, width)
            # Padding sees itself: a row of nothing would make softmax NaN.
            mask = (self._seen[rows, None, None, :width] & causal) | itself
            logits.append(self._logits(self._ids[rows], (places + last[rows]).clamp_min(0), mask))
        return torch.cat(logits)

    def _token(self, tokens: Tensor, positions: Tensor, column: int) -> Tensor:
        """Scores [B, V] behind one more token [B] of every row, at positions [B, 1]."""
        self._seen[:, column] = True
        self._slots.cursor.token(column)
        return self._logits(tokens[:, None], positions, self._seen[:, None, None, : self._slots.cursor.sees])

    def _logits(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        out = self._target.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._slots,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _pick(self, logits: Tensor) -> Tensor:
        """Tokens [B] by the Gumbel trick: the argmax of logits / temperature + noise is a sample."""
        uniform = torch.rand(logits.shape, generator=self._generator, device=logits.device)
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return (logits + noise * self._temperatures[:, None]).argmax(-1)
