"""Medusa-1 (Cai et al., arXiv 2401.10774): a frozen target and heads that guess further tokens from its last state.

Head i guesses token t + 2 + i from the state behind the final norm at t: residual blocks ``x + SiLU(W x + b)``, then an
output matrix. Loss: cross-entropy with the token that came, head i weighs 0.8 ** i. Two layouts: ``full`` has an output
matrix per head (``i.0.linear``, ``i.1.weight``), begun as the target's; ``shared`` has residual blocks alone and uses
the target's (TGI's second format). W and b begin as zero, so an untrained head guesses what the target says next.

Shapes: B rows, T tokens, S starts, D width, N states, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specproxy.train.packing import Batch, pick
from specproxy.train.recipe import Guesses, Outcome
from specproxy.train.saving import published, read_published, write_head
from specproxy.train.target import FrozenTarget

DECAY = 0.8
"""Weight of a head's loss over that of the head before (the paper's)."""

FILE = "medusa_lm_head.safetensors"


@dataclass(frozen=True)
class MedusaOptions:
    """``blocks``: residual blocks of a head."""

    heads: int = 5
    blocks: int = 1
    layout: Literal["shared", "full"] = "shared"


class ResBlock(nn.Module):
    """x + SiLU(W x + b)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, D]."""
        return x + F.silu(self.linear(x))


class MedusaHeads(nn.ModuleList):
    """One Sequential a head, so that parameters carry the published names."""

    def __init__(self, options: MedusaOptions, output: Tensor) -> None:
        """``output`` [V, D]: the target's output matrix."""
        super().__init__()
        vocab_size, size = output.shape
        for _ in range(options.heads):
            layers: list[nn.Module] = [ResBlock(size) for _ in range(options.blocks)]
            if options.layout == "full":
                matrix = nn.Linear(size, vocab_size, bias=False)
                with torch.no_grad():
                    matrix.weight.copy_(output.float())
                layers.append(matrix)
            self.append(nn.Sequential(*layers))


class MedusaRecipe:
    """Medusa heads and their target."""

    name = "medusa"

    def __init__(self, target: FrozenTarget, options: MedusaOptions) -> None:
        self._target = target
        self._options = options
        self._heads = MedusaHeads(options, target.head_weight).to(target.device)
        self.steps = options.heads

    @classmethod
    def load(cls, target: FrozenTarget, folder: Path) -> MedusaRecipe:
        """Heads from a folder as ``save`` writes it; their number and layout are read off the tensors. Raises
        ModelLoadError."""
        _, tensors = read_published(folder, FILE)
        heads = 1 + max(int(name.split(".")[0]) for name in tensors)
        blocks = next(i for i in itertools.count() if f"0.{i}.linear.weight" not in tensors)
        layout: Literal["shared", "full"] = "full" if f"0.{blocks}.weight" in tensors else "shared"
        recipe = cls(target, MedusaOptions(heads, blocks, layout))
        recipe._heads.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return recipe

    @property
    def module(self) -> nn.Module:
        """The heads."""
        return self._heads

    def learn(self, batch: Batch) -> Outcome:
        """Cross-entropy of every head with the tokens of the batch, weighted; guesses against the target's choice."""
        final = self._target.states(batch).final
        with torch.no_grad():
            best = self._target.logits(final).argmax(-1)
        final = pick(final, batch.starts)
        loss = torch.zeros((), device=batch.ids.device)
        right, counted = [], []
        for ahead, head in enumerate(self._heads):
            due = batch.usable & pick(batch.counted(2 + ahead), batch.starts)
            logits = self._logits(head, final).float()
            token = pick(batch.ids, batch.starts + 2 + ahead)
            entropy = F.cross_entropy(logits.flatten(0, 1), token.flatten(), reduction="none").view(token.shape)
            loss = loss + DECAY**ahead * (entropy * due).sum() / due.sum().clamp_min(1)
            right.append(logits.detach().argmax(-1) == pick(best, batch.starts + 1 + ahead))
            counted.append(due)
        return Outcome(loss, Guesses(torch.stack(right), torch.stack(counted)))

    @torch.no_grad()
    def guess(self, batch: Batch) -> Guesses:
        """Guesses against the batch's own tokens."""
        final = pick(self._target.states(batch).final, batch.starts)
        right, counted = [], []
        for ahead, head in enumerate(self._heads):
            tokens = self._logits(head, final).argmax(-1)
            right.append(tokens == pick(batch.ids, batch.starts + 2 + ahead))
            counted.append(batch.usable & pick(batch.counted(2 + ahead), batch.starts))
        return Guesses(torch.stack(right), torch.stack(counted))

    @torch.no_grad()
    def step_s(self, repeat: Callable[[Callable[[], object]], float]) -> float:
        """A round is one pass of all heads over one state."""
        final = torch.zeros(1, self._target.config.hidden_size, device=self._target.device)
        return repeat(lambda: [self._logits(head, final).argmax(-1) for head in self._heads]) / self.steps

    def save(self, folder: Path) -> None:
        """``config.json`` and ``medusa_lm_head.safetensors`` in bf16."""
        config = {
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "medusa_num_heads": self._options.heads,
            "medusa_num_layers": self._options.blocks,
            "hidden_size": self._target.config.hidden_size,
            "vocab_size": self._target.config.vocab_size,
            "base_model_name_or_path": self._target.folder.name,
            "torch_dtype": "bfloat16",
        }
        write_head(folder, FILE, published(self._heads), config)

    def facts(self) -> dict[str, Any]:
        """Shape and layout."""
        return asdict(self._options) | {"parameters": sum(p.numel() for p in self._heads.parameters())}

    def _logits(self, head: nn.Module, final: Tensor) -> Tensor:
        features: Tensor = head(final.float())
        if self._options.layout == "full":
            return features
        return F.linear(features, self._target.head_weight.to(features.dtype))
