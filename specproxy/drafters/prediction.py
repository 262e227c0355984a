"""OpenAI's Predicted Outputs as a drafter: the client sends most of the answer, we draft from it (``alignment.py``)."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from specproxy.alignment import Alignment
from specproxy.drafters.base import DraftBatch, DraftContext, DraftRow, Memory, Needs
from specproxy.drafters.registry import Host, Options, fingerprint, read_options
from specproxy.vocabulary import MAX_TREE_NODES

_PRIOR = (0.5, 0.75, 0.9)


class PredictionOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of the type ``prediction``."""

    max_k: int = MAX_TREE_NODES

    def __post_init__(self) -> None:
        if not 1 <= self.max_k <= MAX_TREE_NODES:
            raise ValueError(f"expected max_k from 1 to {MAX_TREE_NODES}, got {self.max_k}")


class PredictionDrafter:
    """Drafts what the prediction says next; no guess for a sequence without one, or beyond its end."""

    def __init__(self, name: str, options: PredictionOptions) -> None:
        self.name = name
        self.fingerprint = fingerprint("prediction", msgspec.structs.asdict(options))
        self.needs = Needs(max_k=options.max_k, prior=_PRIOR)

    def prefill(self, ctx: DraftContext) -> None:
        """Align the committed output from scratch."""
        for row in ctx.rows:
            row.state = None
            self._alignment(row)

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        """The next tokens of the prediction."""
        for r, row in enumerate(ctx.rows):
            out.n[r] = 0
            alignment = self._alignment(row)
            k = min(row.k, self.needs.max_k)
            if alignment is not None and k > 0:
                cursor = alignment.cursor
                out.put_chain(r, alignment.prediction[cursor : cursor + k], alignment.confidence)

    def commit(self, ctx: DraftContext) -> None:
        """Align what is new."""
        for row in ctx.rows:
            self._alignment(row)

    def release(self, seq_id: str) -> None:
        """Nothing to do: the memory goes with ``DraftRow.state``."""

    def memory(self) -> Memory:
        """Neither weights nor KV."""
        return Memory()

    def _alignment(self, row: DraftRow) -> Alignment | None:
        if not row.prediction:
            return None
        alignment = row.state
        if not isinstance(alignment, Alignment):
            alignment = Alignment(row.prediction)
            row.state = alignment
        for token in row.tokens[row.num_prompt + alignment.seen :]:
            alignment.feed(token)
        return alignment


def load(name: str, options: Options, host: Host) -> PredictionDrafter:
    """Registry loader; needs nothing of the host."""
    return PredictionDrafter(name, read_options(PredictionOptions, name, "prediction", options))
