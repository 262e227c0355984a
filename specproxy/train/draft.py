"""A draft model distilled from the target: a small Llama of the same tokenizer learns the target's distributions.

Loss: the cross-entropy against the target's whole distribution at every token that counts (forward KL but for the
target's entropy, which is constant; Hinton et al., arXiv 1503.02531).

Shapes: B rows, T tokens, N chosen positions, V vocabulary.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specproxy.errors import ModelLoadError
from specproxy.train.packing import Batch, shift
from specproxy.train.recipe import Guesses, Outcome
from specproxy.train.target import FrozenTarget

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@dataclass(frozen=True)
class DraftOptions:
    """Sizes of a new model. ``steps``: guesses that acceptance is counted for."""

    hidden_size: int = 192
    layers: int = 3
    heads: int = 3
    kv_heads: int = 1
    intermediate_size: int = 512
    steps: int = 5


class DraftRecipe:
    """A draft model and its target. ``model``: transformers' Llama with parameters in float32."""

    name = "draft"

    def __init__(self, target: FrozenTarget, model: Any, options: DraftOptions) -> None:
        self._target = target
        self._model = model.to(target.device, torch.float32)
        self._options = options
        self.steps = options.steps

    @classmethod
    def start(cls, target: FrozenTarget, options: DraftOptions) -> DraftRecipe:
        """A new model with random weights."""
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=target.config.vocab_size,
            hidden_size=options.hidden_size,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            num_key_value_heads=options.kv_heads,
            intermediate_size=options.intermediate_size,
            max_position_embeddings=target.config.max_position_embeddings,
            rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
            tie_word_embeddings=True,
            bos_token_id=target.config.bos_token_id,
            eos_token_id=target.config.eos_token_id,
            pad_token_id=target.config.pad_token_id,
        )
        return cls(target, LlamaForCausalLM(config), options)

    @classmethod
    def load(cls, target: FrozenTarget, folder: Path, options: DraftOptions) -> DraftRecipe:
        """Weights of an existing draft model. Raises ModelLoadError if its vocabulary is of another size."""
        model = FrozenTarget.load(str(folder), target.device, "float32").model.requires_grad_(True)
        if model.config.vocab_size != target.config.vocab_size:
            raise ModelLoadError(
                f"{folder}: {model.config.vocab_size} tokens; expected the target's {target.config.vocab_size}"
            )
        return cls(target, model, options)

    @property
    def module(self) -> nn.Module:
        """The model."""
        module: nn.Module = self._model
        return module

    def learn(self, batch: Batch) -> Outcome:
        """Loss at every token that counts; guesses against the target's choice."""
        with torch.no_grad():
            wanted = self._target.logits(self._target.states(batch).final)
        due = batch.counted(1)
        logits = self._logits(batch)
        scores = logits[due].float()
        loss = -(wanted[due].float().softmax(-1) * scores.log_softmax(-1)).sum(-1).mean()
        return Outcome(loss, self._guesses(logits.detach().argmax(-1) == wanted.argmax(-1), due))

    @torch.no_grad()
    def guess(self, batch: Batch) -> Guesses:
        """Guesses against the batch's own tokens, from positions whose next token counts."""
        hit = self._logits(batch).argmax(-1) == shift(batch.ids, 1, -1)
        return self._guesses(hit, batch.counted(1))

    @torch.no_grad()
    def step_s(self, repeat: Callable[[Callable[[], object]], float]) -> float:
        """One token of one sequence, over no memory."""
        ids = torch.zeros(1, 1, dtype=torch.int64, device=self._target.device)
        return repeat(lambda: self._model(input_ids=ids, use_cache=False).logits.argmax(-1))

    def save(self, folder: Path) -> None:
        """A model folder in bf16, with the target's tokenizer."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        copy.deepcopy(self._model).to(torch.bfloat16).save_pretrained(folder)
        for name in TOKENIZER_FILES:
            if (self._target.folder / name).is_file():
                shutil.copyfile(self._target.folder / name, folder / name)

    def facts(self) -> dict[str, Any]:
        """Sizes."""
        return asdict(self._options) | {"parameters": sum(p.numel() for p in self._model.parameters())}

    def _logits(self, batch: Batch) -> Tensor:
        logits: Tensor = self._model(
            input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask(), use_cache=False
        ).logits
        return logits

    def _guesses(self, hit: Tensor, due: Tensor) -> Guesses:
        """Guess j from position t is the model's token at t + 1 + j: it sees the target's own tokens before it."""
        right = [shift(hit, 1 + step, False) for step in range(self.steps)]
        counted = [due & shift(due, 1 + step, False) for step in range(self.steps)]
        return Guesses(torch.stack(right), torch.stack(counted))
