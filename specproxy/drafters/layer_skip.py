"""The target as its own drafter: its first layers, its norm and its head (Draft & Verify: Zhang et al., arXiv
2309.08168; early exit as in LayerSkip: Elhoushi et al., arXiv 2404.16710).

It has no weights and no KV of its own: the first layers' keys of committed tokens are the target's, those of drafted
tokens go where the target's step writes them anyway, and are overwritten there.

Shapes: N nodes of a level, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from msgspec import Struct
from torch import Tensor

from specproxy.drafters.base import DraftBatch, DraftContext, DraftRow, Memory, Needs
from specproxy.drafters.forms import Form, chain, run_of
from specproxy.drafters.growth import Ask, Draw, Grower
from specproxy.drafters.registry import Host, Options, fingerprint, read_options
from specproxy.errors import ConfigError, ModelLoadError
from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from specproxy.models.base import query_group
from specproxy.models.fused import FusedModel

if TYPE_CHECKING:
    from specproxy.drafters.lanes import Entry, Lanes

DEFAULT_MAX_K = 8


class LayerSkipOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``layers``: how many of the target's layers draft; "auto": half of them. ``draw``: see Draw."""

    layers: int | Literal["auto"] = "auto"
    max_k: int = DEFAULT_MAX_K
    draw: Draw = "coupled"


class LayerSkipDrafter:
    """See the module's text."""

    def __init__(
        self, name: str, model: FusedModel, kv: KVBuffers, layers: int, max_k: int, draw: Draw = "coupled"
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint("layer_skip", {"layers": layers, "target": model.spec.fingerprint})
        lanes = model.spec.path_kind == "device"
        self.needs = Needs(place="device", max_k=max_k, lanes=lanes, prior=(0.5,))
        self._model = model
        self._kv = kv
        self._layers = layers
        self._coupled = draw == "coupled"
        self._grower = Grower(self, draw)

    def prefill(self, ctx: DraftContext) -> None:
        """Nothing to do: the target has computed it."""

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        """Chains."""
        self._grower.propose(ctx, out)

    def commit(self, ctx: DraftContext) -> None:
        """Learn how far margins can be trusted."""
        self._grower.commit(ctx)

    def release(self, seq_id: str) -> None:
        """Nothing is kept but what a draft was drawn with."""
        self._grower.forget(seq_id)

    def memory(self) -> Memory:
        """Both are the target's."""
        return Memory()

    def begin(self, row: DraftRow) -> None:
        """See LaneDrafter: all KV is the target's."""

    def enter(self, row: DraftRow, most: int) -> Entry | None:
        """See LaneDrafter: the last committed token is the only one without KV."""
        from specproxy.drafters.lanes import Entry  # needs Triton, which comes with a GPU

        return Entry(1)

    def form(self, levels: int, nodes: int, width: int) -> Form:
        """See LaneDrafter."""
        return chain(min(levels, nodes))

    def draft(self, lanes: Lanes, form: Form) -> Tensor:
        """See LaneDrafter."""
        group = query_group(self._model)
        rows = [lanes.rows(run_of(ahead, 1), group) for ahead in range(form.depth)]
        ids, tokens = lanes.newest(lanes.tokens), []
        for ahead, (positions, plan) in enumerate(rows, start=1):
            logits, _ = self._model.forward(ids, positions, plan, self._kv, None, depth=self._layers)
            ids = lanes.pick(logits, ahead, coupled=self._coupled)[:, 0, 0]
            tokens.append(ids)
        return torch.stack(tokens, 1)

    def take_in(self, lanes: Lanes) -> None:
        """See LaneDrafter: all KV is the target's."""

    def leave(self, row: DraftRow, taken: int) -> None:
        """See LaneDrafter: all KV is the target's."""

    def catch_up(self, rows: Sequence[DraftRow]) -> Tensor:
        """See growth.Source: the last committed token is the only one without KV."""
        return self._forward([(row, row.tokens[-1], len(row.tokens) - 1) for row in rows])

    def extend(self, nodes: Sequence[Ask]) -> Tensor:
        """See growth.Source."""
        return self._forward([(node.row, node.token, len(node.row.tokens) - 1 + node.depth) for node in nodes])

    def _forward(self, work: Sequence[tuple[DraftRow, int, int]]) -> Tensor:
        """Logits [N, V] behind (row, token, position)."""
        device, size = self._model.spec.device, self._kv.page_size
        slots = [row.pages[p // size] * size + p % size for row, _, p in work]
        spans = [Span(i, 1, p, row.pages) for i, (row, _, p) in enumerate(work)]
        group = query_group(self._model)
        plan = plan_attention(spans, torch.tensor(slots, device=device), self._kv, exact=False, group=group)
        ids = torch.tensor([token for _, token, _ in work], device=device)
        positions = torch.tensor([p for _, _, p in work], device=device)
        return self._model.forward(ids, positions, plan, self._kv, None, depth=self._layers)[0]


def load(name: str, options: Options, host: Host) -> LayerSkipDrafter:
    """The loader of type ``layer_skip``. Raises ConfigError for the number of layers, ModelLoadError for a target whose
    layers cannot be run one by one."""
    chosen = read_options(LayerSkipOptions, name, "layer_skip", options)
    model = host.model
    if model.spec.ranks > 1:
        raise ModelLoadError(f"drafters.{name}: layer_skip needs the whole target; model.tensor_parallel shares it")
    if not isinstance(model, FusedModel):
        raise ModelLoadError(
            f"drafters.{name}: layer_skip runs on targets of the Llama family only; {model.spec.model_type} goes "
            "through transformers' own module, which has no way to stop early"
        )
    total = len(model.spec.layers)
    layers = max(1, total // 2) if chosen.layers == "auto" else chosen.layers
    if not 1 <= layers < total:
        raise ConfigError(f"drafters.{name}: layers is {layers}; expected 1 to {total - 1} for this target")
    return LayerSkipDrafter(name, model, host.kv, layers, chosen.max_k, chosen.draw)
