"""Runs a recurrent head over paged KV as the engine does, and compares it with its reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from specproxy.heads.base import RecurrentHead, TargetFacts
from specproxy.heads.loading import read_head
from specproxy.heads.readings import Overrides
from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from tests.heads.checkpoints import Checkpoint
from tests.heads.reference import Array, Eagle, Eagle3, draft

SCATTERED = (9, 3, 12, 5, 7, 2, 14, 4)
"""Pages of a sequence, in no order."""

PAGE_SIZE = 16


class Run:
    """One sequence of a head: entries go in by parts, KV stands in pages."""

    def __init__(self, head: RecurrentHead, pages: Sequence[int] = SCATTERED, first: int = 0) -> None:
        """``first``: position of the first entry."""
        self.head = head
        self.count = 0
        self._pages = pages
        self._first = first
        self._kv = KVBuffers.allocate(head.spec.layers, max(pages) + 1, PAGE_SIZE, torch.float64, "cpu")

    def enter(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Further entries (hidden [T, H], next tokens [T]); their states and scores."""
        index = range(self.count, self.count + len(tokens))
        slots = torch.tensor([self._pages[i // PAGE_SIZE] * PAGE_SIZE + i % PAGE_SIZE for i in index])
        plan = plan_attention([Span(0, len(tokens), self.count, self._pages)], slots, self._kv, exact=False)
        step = self.head.step(tokens, hidden, self._first + torch.tensor(list(index)), plan, self._kv)
        self.count += len(tokens)
        return step.recurrent, self.head.logits(step.features)


def load(
    checkpoint: Checkpoint, folder: Path, target: TargetFacts, overrides: Overrides | None = None
) -> RecurrentHead:
    """The nominal reading of a written checkpoint."""
    return read_head(str(checkpoint.write(folder)), target, overrides or Overrides()).head  # type: ignore[return-value]


def sample(head: RecurrentHead, vocab: int, width: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random states of the target [T, C * D] as ``head`` reads them, and next tokens [T]."""
    generator = torch.Generator().manual_seed(seed)
    taps = torch.randn(length, len(head.spec.hidden) * width, dtype=torch.float64, generator=generator)
    return taps, torch.randint(vocab, (length,), generator=generator)


def assert_equals(ours: Tensor, expected: Sequence[Array] | Array) -> None:
    """Equal to 1e-9, relative and absolute, and finite."""
    np.testing.assert_allclose(ours.numpy(), np.stack(list(expected)), rtol=1e-9, atol=1e-9)


def assert_drafts_as(
    reference: Eagle3 | Eagle, head: RecurrentHead, taps: Tensor, tokens: Tensor, steps: int, chunk: int, first: int = 0
) -> None:
    """States and scores are the reference's: for the target's states, entered ``chunk`` at a time, and for ``steps``
    entries that read the head's own state and its own best guess."""
    run, states, scores, guesses = Run(head, first=first), [], [], []
    for part, ids in zip(taps.split(chunk), tokens.split(chunk), strict=True):
        state, score = run.enter(ids, head.fuse(part))
        states.append(state)
        scores.append(score)
    for _ in range(steps):
        guess = scores[-1][-1:].argmax(1)
        guesses.append(int(guess if head.spec.ids is None else head.spec.ids[guess]))
        state, score = run.enter(torch.tensor(guesses[-1:]), states[-1][-1:])
        states.append(state)
        scores.append(score)
    expected = draft(reference, taps.numpy(), tokens.numpy(), np.array(guesses, dtype=np.int64), first)
    assert_equals(torch.cat(states), expected[0])
    assert_equals(torch.cat(scores), expected[1])
