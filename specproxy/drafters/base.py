"""What a drafter is: it proposes a tree per row, and learns what was accepted.

A draft only guesses what the target will sample, so nothing a drafter does can change an answer. Drafters declare what
they need as data; the loop never asks which one it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from specproxy.vocabulary import MAX_TREE_NODES

if TYPE_CHECKING:
    from specproxy.sampling.sampler import Sampler

ROOT = -1
"""Parent of a draft node whose parent is the last committed token."""


@dataclass(frozen=True)
class Needs:
    """What the loop must provide. ``place``: where drafting runs. ``hidden``: indices of target layers whose outputs
    are captured. ``own_kv``: the drafter keeps KV in the page pool. ``window``: tokens of context it can see
    (``None``: any). ``max_k``: drafted nodes per step at most. ``prior``: for each confidence bucket that the drafter
    reports, the share of drafts it expects to see accepted before anything was measured, 0 to 1."""

    place: Literal["host", "device"] = "host"
    hidden: tuple[int, ...] = ()
    own_kv: bool = False
    window: int | None = None
    max_k: int = MAX_TREE_NODES
    prior: tuple[float, ...] = (0.7,)


@dataclass
class DraftRow:
    """One sequence as a drafter sees it.

    ``tokens``: prompt and committed output, ids; read only. ``num_prompt``: how many are prompt. ``k``: nodes this row
    may draft now. ``group``: where shared statistics and indices belong (route and tenant). ``sampler``: the
    request's own processors and noise, for coupled drafting. ``pages``: the sequence's page table, for drafters with
    KV in the pool. ``state``: the drafter's own memory of this sequence, kept by the loop, ``None`` at first.
    ``accepted``: in ``commit``, how many of the drafted tokens were accepted. ``floor``: a chance of acceptance below
    which a further token does not pay for itself; a drafter that can tell stops there, but not below ``least`` nodes.
    """

    seq_id: str
    tokens: Sequence[int]
    num_prompt: int
    k: int
    group: str
    sampler: Sampler
    prediction: Sequence[int] = ()
    pages: Sequence[int] = ()
    state: object | None = None
    accepted: int = 0
    floor: float = 0.0
    least: int = 0


@dataclass
class DraftContext:
    """The rows of one call, in the order of the DraftBatch's rows."""

    rows: list[DraftRow] = field(default_factory=list)


@dataclass
class DraftBatch:
    """Draft trees of R rows, at most N nodes each, preallocated.

    tokens[R, N], parents[R, N] int64, n[R] int64: nodes i < n[r] of row r; ``parents[r, i] < i``, ROOT for children of
    the last committed token. Siblings stand in order of preference. bucket[R] int64: how sure the drafter is of row r,
    an index into its ``Needs.prior`` (0 where it does not tell rows apart).
    """

    tokens: np.ndarray
    parents: np.ndarray
    n: np.ndarray
    bucket: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.bucket = np.zeros_like(self.n)

    @classmethod
    def allocate(cls, rows: int, nodes: int) -> DraftBatch:
        """An empty batch for ``rows`` x ``nodes``."""
        return cls(np.zeros((rows, nodes), np.int64), np.full((rows, nodes), ROOT, np.int64), np.zeros(rows, np.int64))

    def clear(self, rows: int) -> None:
        """No drafts in the first ``rows`` rows."""
        self.n[:rows] = 0
        self.bucket[:rows] = 0

    def put_chain(self, row: int, tokens: Sequence[int], bucket: int = 0) -> None:
        """Row ``row`` drafts the chain ``tokens``, cut to the batch's width, with confidence ``bucket``."""
        n = min(len(tokens), self.tokens.shape[1])
        self.tokens[row, :n] = tokens[:n]
        self.parents[row, :n] = np.arange(-1, n - 1)
        self.n[row] = n
        self.bucket[row] = bucket


class Drafter(Protocol):
    """A source of guesses. Called from the engine's thread only. ``fingerprint``: identity of options and weights."""

    name: str
    fingerprint: str
    needs: Needs

    def prefill(self, ctx: DraftContext) -> None:
        """Rows begin (or begin again, after a resume): ``tokens`` is all that is committed. May set ``row.state``."""
        ...

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        """Write at most ``row.k`` nodes for each row into ``out``; ``n[r] = 0`` where there is no guess."""
        ...

    def commit(self, ctx: DraftContext) -> None:
        """Rows advanced: ``tokens`` includes what was accepted and the bonus token."""
        ...

    def release(self, seq_id: str) -> None:
        """The sequence is gone."""
        ...
