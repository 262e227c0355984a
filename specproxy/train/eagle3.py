"""EAGLE-3 (Li et al., arXiv 2503.01840): fused states of three depths, a reduced vocabulary, training-time test.

Loss: at each unrolled step the cross-entropy against the target's distribution over the draft vocabulary, where the
target's own choice lies in it; step j weighs 0.8 ** j.

Shapes: B rows, T tokens, S starts, D target width, H width, V vocabulary, Vd the head's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from specproxy.train.eagle3_head import (
    Eagle3Head,
    Eagle3Options,
    block_shape,
    count_tokens,
    default_states,
    draft_vocabulary,
    published_config,
    read_shape,
)
from specproxy.train.packing import Batch, Document, pick
from specproxy.train.recipe import Guesses, Outcome
from specproxy.train.saving import published, read_published, write_head
from specproxy.train.target import FrozenTarget

DECAY = 0.8
"""Weight of a step's loss over that of the step before (EAGLE repository)."""


class Eagle3Recipe:
    """An EAGLE-3 head and its target."""

    name = "eagle3"

    def __init__(
        self,
        target: FrozenTarget,
        head: Eagle3Head,
        hidden: tuple[int, ...],
        options: Eagle3Options,
        coverage: float | None = None,
    ) -> None:
        """``coverage``: share of the tokens to be guessed that the draft vocabulary has; more than that cannot be
        accepted."""
        self._target = target
        self._head = head.to(target.device)
        self._hidden = hidden
        self._options = options
        self._coverage = coverage
        self.steps = options.steps

    @classmethod
    def start(cls, target: FrozenTarget, documents: Sequence[Document], options: Eagle3Options) -> Eagle3Recipe:
        """A new head: random but for ``lm_head``, which begins as the target's."""
        counts = count_tokens(documents, target.config.vocab_size)
        kept = draft_vocabulary(counts, options.draft_vocab, target.eos_ids)
        hidden = options.hidden or default_states(target.config.num_hidden_layers)
        shape = block_shape(target.config, options)
        head = Eagle3Head(shape, len(hidden) * target.config.hidden_size, kept, target.config.vocab_size)
        with torch.no_grad():
            head.lm_head.weight.copy_(target.head_weight[kept.to(target.device)].float())
        return cls(target, head, hidden, options, round(float(counts[kept].sum() / counts.sum()), 4))

    @classmethod
    def load(cls, target: FrozenTarget, folder: Path, options: Eagle3Options) -> Eagle3Recipe:
        """A head from a folder as ``save`` writes it. Raises ModelLoadError."""
        config, tensors = read_published(folder, "model.safetensors")
        hidden = tuple(config["eagle_aux_hidden_state_layer_ids"])
        kept = torch.arange(config["draft_vocab_size"]) + tensors.get("d2t", 0)
        shape = read_shape(config)
        head = Eagle3Head(shape, len(hidden) * target.config.hidden_size, kept, target.config.vocab_size)
        tables = {"d2t": head.d2t, "t2d": head.t2d}
        head.load_state_dict(tables | {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()})
        return cls(target, head, hidden, options)

    @property
    def module(self) -> nn.Module:
        """The head."""
        return self._head

    def learn(self, batch: Batch) -> Outcome:
        """Loss over all steps, weighted; guesses against the target's most likely token."""
        states = self._target.states(batch, self._hidden)
        with torch.no_grad():
            logits_BTV = self._target.logits(states.final)
            best = logits_BTV.argmax(-1)
            wanted = logits_BTV[..., self._head.kept]
            del logits_BTV
        known = self._head.t2d[best]
        embedded = self._target.embed(batch.ids)
        loss = torch.zeros((), device=batch.ids.device)
        right, counted = [], []
        for step, features in enumerate(self._head.unroll(states.taps, embedded, batch, self.steps)):
            # The target's verdict on token t + 2 + step stands at position t + 1 + step.
            verdict = batch.starts + 1 + step
            due = batch.usable & pick(batch.counted(2 + step), batch.starts)
            weight = due & pick(known, verdict)
            logits = self._head.lm_head(features).float()
            wish = pick(wanted, verdict).float().softmax(-1)
            # A product, not a selection: the number of those that count would have to be waited for.
            entropy = -(wish * logits.log_softmax(-1)).sum(-1)
            loss = loss + DECAY**step * (entropy * weight).sum() / weight.sum().clamp_min(1)
            right.append(self._head.kept[logits.detach().argmax(-1)] == pick(best, verdict))
            counted.append(due)
        return Outcome(loss, Guesses(torch.stack(right), torch.stack(counted)))

    @torch.no_grad()
    def guess(self, batch: Batch) -> Guesses:
        """Guesses against the batch's own tokens."""
        states = self._target.states(batch, self._hidden)
        embedded = self._target.embed(batch.ids)
        right, counted = [], []
        for step, features in enumerate(self._head.unroll(states.taps, embedded, batch, self.steps)):
            tokens = self._head.kept[self._head.lm_head(features).argmax(-1)]
            right.append(tokens == pick(batch.ids, batch.starts + 2 + step))
            counted.append(batch.usable & pick(batch.counted(2 + step), batch.starts))
        return Guesses(torch.stack(right), torch.stack(counted))

    @torch.no_grad()
    def step_s(self, repeat: Callable[[Callable[[], object]], float]) -> float:
        """One guess of one sequence: the layer and its output matrix, over a short memory."""
        device = self._target.device
        zero = torch.zeros(1, 1, dtype=torch.int64)
        one = Batch.of(zero, zero, zero, zero.bool()).to(device)
        taps = torch.zeros(1, 1, self._head.fc.in_features, device=device)
        embedded = self._target.embed(one.ids).float()

        def draft() -> None:
            for features in self._head.unroll(taps, embedded, one, self.steps):
                self._head.lm_head(features).argmax(-1)

        return repeat(draft) / self.steps

    def save(self, folder: Path) -> None:
        """``config.json`` and ``model.safetensors`` in bf16; no tables where the vocabulary is the target's."""
        vocab_size = self._target.config.vocab_size
        tensors = published(self._head)
        if len(self._head.d2t) == vocab_size:
            del tensors["d2t"], tensors["t2d"]
        config = published_config(self._head, self._hidden, vocab_size, self._options.window)
        write_head(folder, "model.safetensors", tensors, config)

    def facts(self) -> dict[str, Any]:
        """Captured states, training-time steps, vocabulary and size."""
        facts = {
            "hidden_states": list(self._hidden),
            "training_time_steps": self.steps,
            "draft_vocabulary": len(self._head.d2t),
            "vocabulary_coverage": self._coverage,
            "parameters": sum(p.numel() for p in self._head.parameters()),
        }
        return {name: value for name, value in facts.items() if value is not None}
