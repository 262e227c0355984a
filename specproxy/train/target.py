"""The frozen target: what it says, and the hidden states that heads learn from, in packed rows.

transformers' own module does the computing, so any causal language model can be learned from. Its states are made on
the fly: writing them down would take some hundred kilobytes a token.

Shapes: B rows, T tokens a row, D width, C captured states, N chosen positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.models.loading import DTYPES, find_model, fingerprint
from specproxy.train.packing import Batch


class States(NamedTuple):
    """``taps`` [B, T, C * D]: the captured states, concatenated. ``final`` [B, T, D]: behind the final norm."""

    taps: Tensor
    final: Tensor


@dataclass(frozen=True)
class FrozenTarget:
    """A target that is only read. ``model``: transformers' module, in evaluation mode, without gradients."""

    model: Any
    folder: Path
    device: str

    @classmethod
    def load(cls, path: str, device: str = "auto", dtype: str = "auto") -> FrozenTarget:
        """``dtype`` auto: the checkpoint's on a GPU, float32 on a CPU. Raises ModelLoadError."""
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        folder = find_model(path, "target")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        wanted: Any = DTYPES.get(dtype, "auto" if device != "cpu" else torch.float32)
        logging.disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=wanted, use_safetensors=True, attn_implementation="sdpa"
            )
            model = model.to(device).eval().requires_grad_(False)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise ModelLoadError(f"{path}: the weights cannot be loaded: {error}") from None
        return cls(model, folder, device)

    @property
    def config(self) -> Any:
        """The configuration of its text part."""
        return self.model.config.get_text_config()

    @property
    def fingerprint(self) -> str:
        """Identity of its weights."""
        return fingerprint(self.folder)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        eos = self.model.generation_config.eos_token_id
        return tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix [V, D]."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> [..., D]."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def logits(self, final: Tensor) -> Tensor:
        """States behind the final norm [N, D] -> [N, V], in the target's dtype."""
        scores: Tensor = self.model.get_output_embeddings()(final.to(self.head_weight.dtype))
        return scores

    @torch.no_grad()
    def states(self, batch: Batch, hidden: tuple[int, ...] = ()) -> States:
        """``hidden``: hs[i] to capture; i layers have run, -1 is the state behind the final norm."""
        out = self.model.model(
            input_ids=batch.ids,
            position_ids=batch.positions,
            attention_mask=batch.mask(),
            output_hidden_states=bool(hidden),
            use_cache=False,
        )
        final = out.last_hidden_state
        if not hidden:
            return States(final[..., :0], final)
        return States(torch.cat([final if i == -1 else out.hidden_states[i] for i in hidden], -1), final)
