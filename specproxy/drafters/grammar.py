"""Forced tokens as drafts: where a grammar leaves one continuation (a key of an object, a closing brace, the end of the
answer), that continuation is known before any model was asked, and costs nothing to draft. Such runs are short; behind
the chains of other drafters they make those longer.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from specproxy.drafters.base import DraftBatch, DraftContext, DraftRow, Memory, Needs
from specproxy.drafters.registry import Host, Options, fingerprint, read_options
from specproxy.vocabulary import MAX_TREE_NODES

_PRIOR = (0.95,)


class GrammarOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of the type ``grammar``."""

    max_k: int = MAX_TREE_NODES

    def __post_init__(self) -> None:
        if not 1 <= self.max_k <= MAX_TREE_NODES:
            raise ValueError(f"expected max_k from 1 to {MAX_TREE_NODES}, got {self.max_k}")


class GrammarDrafter:
    """Drafts what the row's grammar forces, as the tokenizer would write it; no guess where the model has a choice, or
    for a sequence without a grammar. The target may spell the same text in other tokens, so it is still verified."""

    def __init__(self, name: str, options: GrammarOptions) -> None:
        self.name = name
        self.fingerprint = fingerprint("grammar", msgspec.structs.asdict(options))
        self.needs = Needs(max_k=options.max_k, extends=True, prior=_PRIOR)

    def prefill(self, ctx: DraftContext) -> None:
        """Nothing to do: the row's sampler follows the grammar."""

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        """The forced tokens."""
        for r, row in enumerate(ctx.rows):
            out.put_chain(r, row.sampler.forced(min(row.k, self.needs.max_k)))

    def extend(self, row: DraftRow, path: Sequence[int], limit: int) -> list[int]:
        """See Extender: what is forced behind another drafter's chain, or in place of what was cut from it."""
        return row.sampler.forced(min(limit, self.needs.max_k), path)

    def commit(self, ctx: DraftContext) -> None:
        """Nothing to learn."""

    def release(self, seq_id: str) -> None:
        """Nothing is kept."""

    def memory(self) -> Memory:
        """Neither weights nor KV; the compiled grammar is the engine's."""
        return Memory()


def load(name: str, options: Options, host: Host) -> GrammarDrafter:
    """Registry loader; needs nothing of the host."""
    return GrammarDrafter(name, read_options(GrammarOptions, name, "grammar", options))
