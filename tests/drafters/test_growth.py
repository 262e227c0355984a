"""How drafts grow: within their bounds, likeliest first, cut where they do not pay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specproxy.drafters.base import ROOT, DraftBatch, DraftContext, DraftRow
from specproxy.drafters.growth import Ask, Grower
from specproxy.sampling.sampler import Sampler
from specproxy.vocabulary import SamplingParams

VOCAB = 12


class Toy:
    """A source whose logits are a function of the path, and which checks what it is asked."""

    def __init__(self, sharpness: float = 3.0) -> None:
        self.sharpness = sharpness
        self.levels: list[int] = []
        self._paths: dict[str, list[tuple[int, ...]]] = {}

    def logits(self, path: Sequence[int]) -> Tensor:
        """Scores [V] behind a path."""
        generator = torch.Generator().manual_seed(hash(tuple(path)) % 2**31)
        return torch.randn(VOCAB, generator=generator) * self.sharpness

    def catch_up(self, rows: Sequence[DraftRow]) -> Tensor:
        """See growth.Source."""
        for row in rows:
            self._paths[row.seq_id] = []
        return torch.stack([self.logits(row.tokens) for row in rows])

    def extend(self, nodes: Sequence[Ask]) -> Tensor:
        """See growth.Source; a parent must have been run before."""
        out = []
        self.levels.append(len(nodes))
        for node in nodes:
            ran = self._paths[node.row.seq_id]
            above = () if node.parent == ROOT else ran[node.parent]
            path = (*above, node.token)
            assert len(path) == node.depth
            ran.append(path)
            out.append(self.logits([*node.row.tokens, *path]))
        return torch.stack(out)


def make_row(
    name: str = "a", k: int = 4, room: int = 12, temperature: float = 0.0, width: int = 1, **more: float
) -> DraftRow:
    """A row that may draft a tree of ``width``."""
    params = SamplingParams(temperature=temperature)
    sampler = Sampler(params, 5, 0, [0], VOCAB, (), torch.device("cpu"))
    row = DraftRow(name, [1, 2, 3], 2, k, "", sampler, room=room, width=width)
    for key, value in more.items():
        setattr(row, key, value)
    return row


def depths(out: DraftBatch, r: int) -> list[int]:
    """Depth of each node of a row."""
    found: list[int] = []
    for i in range(int(out.n[r])):
        parent = int(out.parents[r, i])
        found.append(1 if parent == ROOT else found[parent] + 1)
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 7), st.integers(1, 30), st.sampled_from([0.0, 1.0]))
def test_a_draft_stays_within_its_bounds(width: int, other: int, k: int, room: int, temperature: float) -> None:
    """No more levels than k, no more nodes than room, parents before children, no two siblings alike."""
    toy = Toy()
    grower, out = Grower(toy), DraftBatch.allocate(2, 40)
    rows = [make_row("a", k, room, temperature, width), make_row("b", max(1, k - 1), room, temperature, other)]
    grower.propose(DraftContext(rows), out)
    for r, row in enumerate(rows):
        n = int(out.n[r])
        assert 1 <= n <= room
        assert max(depths(out, r)) <= row.k
        assert all(out.parents[r, i] < i for i in range(n))
        pairs = [(int(out.parents[r, i]), int(out.tokens[r, i])) for i in range(n)]
        assert len(set(pairs)) == n
    assert all(level <= width + other for level in toy.levels)


def test_a_chain_is_what_would_be_sampled() -> None:
    """At any temperature a chain follows the sampler's own choices on the drafter's logits."""
    from specproxy.sampling.sampler import Row, sample_rows

    for temperature in (0.0, 1.0):
        toy, out, row = Toy(), DraftBatch.allocate(1, 6), make_row(k=5, room=5, temperature=temperature)
        Grower(toy).propose(DraftContext([row]), out)
        path: list[int] = []
        for token in out.tokens[0, :5].tolist():
            logits = toy.logits([*row.tokens, *path])[None]
            assert sample_rows(logits, [Row(row.sampler, path, len(row.tokens) + len(path))]) == [token]
            path.append(token)


def test_rows_of_one_call_have_their_own_width() -> None:
    """Beside a row with a tree, a row of width 1 gets its chain."""
    out, rows = DraftBatch.allocate(2, 20), [make_row("a", 4, 4), make_row("b", 4, 12, width=3)]
    Grower(Toy()).propose(DraftContext(rows), out)
    assert out.parents[0, : int(out.n[0])].tolist() == [-1, 0, 1, 2]
    assert out.parents[1, : int(out.n[1])].tolist().count(-1) > 1


def test_a_hopeless_level_is_not_drafted() -> None:
    """With a floor above any chance the draft ends at its first level, or where the policy's minimum lets it."""
    toy, out = Toy(0.01), DraftBatch.allocate(1, 20)
    Grower(toy).propose(DraftContext([make_row(k=6, room=6, floor=0.99)]), out)
    assert int(out.n[0]) == 1
    Grower(toy).propose(DraftContext([make_row(k=6, room=6, floor=0.99, least=3)]), out)
    assert int(out.n[0]) == 3


def test_nodes_that_are_not_worth_their_row_stay_out() -> None:
    """A tree keeps the nodes whose chance pays for verifying them."""
    sizes = []
    for keep in (0.0, 0.2, 0.5):
        out = DraftBatch.allocate(1, 40)
        Grower(Toy()).propose(DraftContext([make_row(k=4, room=30, width=3, keep=keep)]), out)
        sizes.append(int(out.n[0]))
    assert sizes[0] > sizes[1] > sizes[2]


def test_margins_are_learnt_from_what_was_tried() -> None:
    """A drafter that is always right comes to be trusted, one that never is comes to be doubted."""
    chances = []
    for right in (True, False):
        grower = Grower(Toy())
        for _ in range(300):
            row, out = make_row(k=3, room=3), DraftBatch.allocate(1, 3)
            grower.propose(DraftContext([row]), out)
            row.path = [0, 1, 2] if right else []
            grower.commit(DraftContext([row]))
        row, out = make_row(k=8, room=8, floor=0.5), DraftBatch.allocate(1, 8)
        grower.propose(DraftContext([row]), out)
        chances.append(int(out.n[0]))
    assert chances == [8, 1]
