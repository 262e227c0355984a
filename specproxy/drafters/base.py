"""What a drafter is: it proposes a tree per row, and learns what was accepted.

A draft only guesses what the target will sample, so nothing a drafter does can change an answer. Drafters declare what
they need as data; the loop never asks which one it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from specproxy.drafters.hidden import HiddenRows
from specproxy.vocabulary import MAX_TREE_NODES

if TYPE_CHECKING:
    from specproxy.sampling.sampler import Sampler

ROOT = -1
"""Parent of a draft node whose parent is the last committed token."""


@dataclass(frozen=True)
class Needs:
    """What the loop must provide.

    ``place``: where drafting runs. ``hidden``: the target's states that are captured (``StepModel.forward``), in the
    order in which they are concatenated. ``own_kv``: the drafter keeps KV in the page pool. ``window``: tokens of
    context it can see (``None``: any). ``max_k``: levels of a draft at most; a chain has a node a level.
    ``branches``: it can draft trees. ``extends``: it is an Extender. ``lanes``: it is a LaneDrafter (``lanes.py``),
    whose chains can be drafted in a round. ``prior``: for each confidence bucket that the drafter reports, the share
    of drafts it expects to see accepted before anything was measured, 0 to 1.
    """

    place: Literal["host", "device"] = "host"
    hidden: tuple[int, ...] = ()
    own_kv: bool = False
    window: int | None = None
    max_k: int = MAX_TREE_NODES
    branches: bool = False
    extends: bool = False
    lanes: bool = False
    prior: tuple[float, ...] = (0.7,)


@dataclass
class DraftRow:
    """One sequence as a drafter sees it.

    ``tokens``: prompt and committed output, ids; read only. ``num_prompt``: how many are prompt. ``k``: levels this
    row may draft now; ``room``: nodes; ``width``: children of a node, 1 for a chain. ``group``: where shared
    statistics and indices belong (route and tenant). ``sampler``: the request's own processors and noise, for coupled
    drafting. ``pages``: the sequence's page table, for drafters with KV in the pool. ``hidden``: the states that the
    drafter needs of committed tokens that have KV, as far as it has not taken them. ``seen``: tokens that the drafter
    has taken in, noted by itself: what is missing delays its next draft. ``state``: the drafter's own memory of this
    sequence, kept by the loop, ``None`` at first. ``path``: in ``commit``, the accepted nodes of the draft,
    from the root down. ``floor``: a chance of acceptance below which a further level does not pay for itself, ``keep``:
    below which a node does not pay for its row in the target's step; a drafter that can tell stops there, but not below
    ``least`` levels.
    """

    seq_id: str
    tokens: Sequence[int]
    num_prompt: int
    k: int
    group: str
    sampler: Sampler
    prediction: Sequence[int] = ()
    pages: Sequence[int] = ()
    hidden: HiddenRows = field(default_factory=HiddenRows)
    seen: int = 0
    state: object | None = None
    path: Sequence[int] = ()
    floor: float = 0.0
    keep: float = 0.0
    least: int = 0
    room: int = 0
    width: int = 1


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

    def put_tree(self, row: int, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """Row ``row`` drafts a tree; ``parents[i] < i``."""
        n = min(len(tokens), self.tokens.shape[1])
        self.tokens[row, :n] = tokens[:n]
        self.parents[row, :n] = parents[:n]
        self.n[row] = n

    def put_chain(self, row: int, tokens: Sequence[int], bucket: int = 0) -> None:
        """Row ``row`` drafts the chain ``tokens``, cut to the batch's width, with confidence ``bucket``."""
        n = min(len(tokens), self.tokens.shape[1])
        self.tokens[row, :n] = tokens[:n]
        self.parents[row, :n] = np.arange(-1, n - 1)
        self.n[row] = n
        self.bucket[row] = bucket


class Memory(NamedTuple):
    """What a drafter holds beside the target, in bytes: ``weights``, which are the model's parameters in every form
    that is kept, and ``kv``, with other states that it keeps of pages. Small tables of what was said do not count."""

    weights: int = 0
    kv: int = 0


class Drafter(Protocol):
    """A source of guesses. Called from the engine's thread only. ``fingerprint``: identity of options and weights."""

    name: str
    fingerprint: str
    needs: Needs

    def prefill(self, ctx: DraftContext) -> None:
        """Rows begin (or begin again, after a resume): ``tokens`` is all that is committed. May set ``row.state``.

        A drafter that reads hidden states is called once more whenever too many of them wait; it takes them in.
        """
        ...

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        """Write at most ``row.k`` levels and ``row.room`` nodes of each row into ``out``; ``n[r] = 0`` for no guess."""
        ...

    def commit(self, ctx: DraftContext) -> None:
        """``row.path`` was accepted of the row's draft; it and the bonus token are about to join ``tokens``."""
        ...

    def release(self, seq_id: str) -> None:
        """The sequence is gone."""
        ...

    def memory(self) -> Memory:
        """What it holds now beside the target."""
        ...


class Extender(Protocol):
    """A drafter that can go on behind a draft of another one, for nothing."""

    def extend(self, row: DraftRow, path: Sequence[int], limit: int) -> list[int]:
        """At most ``limit`` tokens behind the drafted ``path``."""
        ...
