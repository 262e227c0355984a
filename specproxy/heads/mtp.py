"""Multi-token prediction: modules that a target was trained with, each a layer that reads its final state.

A module takes the state of position p and the embedding of token p + 1, norms both, makes one vector of them, runs a
decoder layer and norms again; that is what the output product takes, and what the next step reads (DeepSeek-V3, arXiv
2412.19437, section 2.2). One module is applied again and again; of several, module i drafts token i.

What the families add is in ``mtp_families.py``, where their tensors are in ``mtp_files.py``.

Shapes: T entries, N rows that guess, H width of the target and of the modules, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.base import HeadSpec, HeadStep, RecurrentHead, TargetFacts
from specproxy.heads.blocks import need
from specproxy.heads.mtp_families import FAMILIES, Stack
from specproxy.heads.mtp_files import find_modules
from specproxy.heads.tables import check_vocabulary, check_width
from specproxy.heads.weights import Weights
from specproxy.kernels.attention import Attention
from specproxy.kernels.paged import KVBuffers
from specproxy.models.base import FINAL

IGNORED = ("*rotary_emb.inv_freq",)
"""Tensors that say nothing the configuration does not."""

COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
"""Where configurations say how many modules there are."""


def is_mtp(names: Collection[str], num_layers: int) -> bool:
    """Whether there are MTP modules among the tensor ``names`` of a target with ``num_layers`` layers."""
    return find_modules(names, num_layers) is not None


def build(weights: Weights, config: dict[str, Any], target: TargetFacts) -> RecurrentHead:
    """The head of ``weights``, which hold MTP tensors alone (see ``mtp_files.wanted``). ``config``: the target's
    config.json, or one published beside the modules.

    Raises ModelLoadError for what does not fit this target, and for tensors that are missing or have no place.
    """
    config = dict(config.get("text_config") or config)
    modules = find_modules(weights.names, target.num_layers)
    if modules is None:
        raise ModelLoadError(
            f"{weights.path}: no MTP module among the tensors; expected model.mtp_layers.0, model.mtp.layers.0, "
            f"mtp.layers.0 or, behind the target's last layer, model.layers.{target.num_layers}"
        )
    check_vocabulary(weights.path, config, target)
    check_width(weights.path, int(need(config, "hidden_size", weights.path)), target)
    _check_count(config, len(modules.prefixes), weights.path)
    stack = FAMILIES[modules.layout](weights, config, target, modules.prefixes)
    weights.finish(IGNORED)
    return MtpHead(stack, weights.fingerprint("mtp", sorted(config.items(), key=lambda item: item[0])))


def _check_count(config: Mapping[str, Any], found: int, path: str) -> None:
    """Raises ModelLoadError where ``config`` promises more modules than were found."""
    for key in COUNTS:
        count = config.get(key)
        if count is not None and int(count) > found:
            raise ModelLoadError(f"{path}: config.json has {key} {count}, but tensors of {found} modules are there")


class MtpHead:
    """RecurrentHead over MTP modules."""

    def __init__(self, stack: Stack, fingerprint: str) -> None:
        count = len(stack.modules)
        self._stack = stack
        self.spec = HeadSpec(
            kind="mtp",
            hidden=(FINAL,),
            layers=stack.layers,
            steps=None if count == 1 else count,
            window=None,
            ids=None,
            fingerprint=fingerprint,
            reading=stack.reading,
            group=stack.group,
            capturable=stack.capturable,
        )

    def fuse(self, taps: Tensor) -> Tensor:
        """The target's final state, as it is."""
        return taps

    def step(
        self, ids: Tensor, hidden: Tensor, positions: Tensor, plan: Attention, kv: KVBuffers, module: int = 0
    ) -> HeadStep:
        """See RecurrentHead.step."""
        stack, run = self._stack, self._stack.modules[module]
        embedded = run.embed(ids)
        if stack.blank_first:
            embedded = embedded.masked_fill((positions == 0)[:, None], 0)
        tokens, states = run.token_norm(embedded), run.hidden_norm(hidden)
        joined = torch.cat([states, tokens] if stack.hidden_first else [tokens, states], 1)
        x = run.join(joined)
        _, x = run.norm.after(*run.layer(x, stack.rotary.at(positions), plan, kv))
        return HeadStep(hidden if stack.anchored else x, x)

    def logits(self, features: Tensor, module: int = 0) -> Tensor:
        """See RecurrentHead.logits."""
        return self._stack.modules[module].head(features)
