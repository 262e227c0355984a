"""Medusa's tree: the likeliest paths of ranks, from accuracies that follow what happens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from specproxy.drafters.base import DraftBatch, DraftContext, DraftRow
from specproxy.drafters.medusa import RANKS, Accuracies, MedusaDrafter
from specproxy.heads.base import HeadSpec
from specproxy.models.base import FINAL
from specproxy.sampling.sampler import Sampler
from specproxy.vocabulary import SamplingParams

VOCAB, WIDTH, HEADS = 16, 8, 3


class ToyHeads:
    """Three heads whose scores are a fixed function of the state."""

    spec = HeadSpec("medusa", (FINAL,), (), HEADS, None, None, "toy")

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weights = torch.randn(HEADS, VOCAB, WIDTH, generator=generator)

    def logits(self, hidden: Tensor) -> Sequence[Tensor]:
        """See ParallelHead."""
        return [hidden @ weight.T for weight in self.weights]


def make_row(length: int, width: int = RANKS, k: int = 3, room: int = 9) -> DraftRow:
    """A row of ``length`` tokens whose last state waits."""
    sampler = Sampler(SamplingParams(temperature=0.0), 0, 0, [0], VOCAB, (), torch.device("cpu"))
    row = DraftRow("a", list(range(1, length + 1)), length, k, "", sampler, room=room, width=width)
    row.hidden.append(0, torch.sin(torch.arange(length - 1)[:, None] + torch.arange(WIDTH) * 1.3))
    return row


@pytest.mark.parametrize("nodes", [1, 4, 11, 30])
def test_the_form_is_the_likeliest_paths(nodes: int) -> None:
    """No tree of as many nodes has a greater sum of path chances."""
    accuracies = Accuracies(HEADS)
    form = accuracies.form(HEADS, nodes, RANKS)
    chances: list[float] = []
    for parent, rank, level in form.nodes:
        above = 1.0 if parent < 0 else chances[parent]
        chances.append(above * accuracies.rate(level, rank))
    every = []
    for depth in range(1, HEADS + 1):
        for path in itertools.product(range(RANKS), repeat=depth):
            chance = 1.0
            for level, rank in enumerate(path):
                chance *= accuracies.rate(level, rank)
            every.append(chance)
    assert sum(chances) == pytest.approx(sum(sorted(every, reverse=True)[:nodes]))
    assert all(parent < i for i, parent in enumerate(form.parents))


def test_accuracies_follow_what_happens() -> None:
    """A rank that is right again and again gains, the others of its head lose, ranks not drafted keep their rate."""
    accuracies = Accuracies(HEADS)
    before = accuracies.rate(0, 5)
    for _ in range(500):
        accuracies.observe(0, 3, 1)
    assert accuracies.rate(0, 1) > 0.9
    assert accuracies.rate(0, 0) < 0.1
    assert accuracies.rate(0, 5) == pytest.approx(before)


def test_a_chain_is_each_heads_best() -> None:
    """Without trees the draft is the best guess of head after head, from the state before the last token."""
    heads, row, out = ToyHeads(), make_row(7, width=1), DraftBatch.allocate(1, 9)
    state = torch.sin(torch.arange(5, 6)[:, None] + torch.arange(WIDTH) * 1.3)
    MedusaDrafter("m", heads, 3).propose(DraftContext([row]), out)
    assert out.tokens[0, :3].tolist() == [int(scores[0].argmax()) for scores in heads.logits(state)]
    assert out.parents[0, :3].tolist() == [-1, 0, 1]


def test_a_tree_holds_the_ranks_of_its_form() -> None:
    """Every node of the tree carries the token that stands at its rank."""
    heads, row, out = ToyHeads(), make_row(7), DraftBatch.allocate(1, 9)
    drafter = MedusaDrafter("m", heads, 3)
    drafter.propose(DraftContext([row]), out)
    state = torch.sin(torch.arange(5, 6)[:, None] + torch.arange(WIDTH) * 1.3)
    best = [scores[0].argsort(descending=True).tolist() for scores in heads.logits(state)]
    form = drafter.accuracies.form(3, 9, RANKS)
    assert tuple(out.parents[0, :9].tolist()) == form.parents
    assert out.tokens[0, :9].tolist() == [best[level][rank] for _, rank, level in form.nodes]


def test_what_was_accepted_is_counted() -> None:
    """The rank of an accepted node gains at its head; where nothing was, all drafted ranks of that head lose."""
    drafter = MedusaDrafter("m", ToyHeads(), 3)
    before = [drafter.accuracies.rate(i, 0) for i in range(2)]
    for length in range(7, 60):
        row, out = make_row(length), DraftBatch.allocate(1, 9)
        drafter.propose(DraftContext([row]), out)
        row.path = [0]
        drafter.commit(DraftContext([row]))
    assert drafter.accuracies.rate(0, 0) > before[0]
    assert drafter.accuracies.rate(1, 0) < before[1]


def test_without_its_last_state_a_row_gets_no_draft() -> None:
    """A row whose last step was not captured is left out."""
    row, out = make_row(7), DraftBatch.allocate(1, 9)
    row.tokens = [*row.tokens, 3]
    out.n[0] = 0
    MedusaDrafter("m", ToyHeads(), 3).propose(DraftContext([row]), out)
    assert int(out.n[0]) == 0
