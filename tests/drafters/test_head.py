"""A head's entries are the sequence's, however they came to be; pages of entries are shared like the target's."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specproxy.drafters.base import DraftBatch, DraftContext, DraftRow
from specproxy.drafters.head import HeadDrafter, known_ids
from specproxy.drafters.head_kv import HeadPages
from specproxy.drafters.hidden import MAX_WAITING
from specproxy.heads.base import RecurrentHead
from specproxy.kernels.paged import KVBuffers
from specproxy.sampling.sampler import Sampler
from specproxy.vocabulary import SamplingParams
from tests.heads.checkpoints import Sizes, fake_target, original_eagle3
from tests.heads.running import Run, load

SIZES = Sizes()
PAGE = 16
PAGES = 96


class Life:
    """A drafter over a random EAGLE-3 head, and sequences that live with it."""

    def __init__(self, head: RecurrentHead, width: int = 1) -> None:
        self.head = head
        self.width = width
        self.listeners: list[Callable[[int], None]] = []
        kv = KVBuffers.allocate(head.spec.layers, PAGES, PAGE, torch.float64, "cpu")
        self.pages = HeadPages(kv, PAGES, self.listeners.append)
        self.drafter = HeadDrafter("eagle3", head, self.pages, SIZES.vocab, 6)
        self.rng = random.Random(3)

    def begin(self, name: str, pages: Sequence[int], tokens: Sequence[int]) -> DraftRow:
        """A row whose prompt is ``tokens``; no states yet."""
        sampler = Sampler(SamplingParams(temperature=0.0), 0, 0, [0], SIZES.vocab, (), torch.device("cpu"))
        return DraftRow(name, list(tokens), len(tokens), 0, "", sampler, pages=pages)

    def states(self, start: int, end: int) -> Tensor:
        """The target's states [T, C * D] of positions: a function of the position."""
        width = len(self.head.spec.hidden) * SIZES.hidden
        positions = torch.arange(start, end, dtype=torch.float64)[:, None]
        return torch.sin(positions * 0.37 + torch.arange(width, dtype=torch.float64) * 1.7)

    def grow(self, row: DraftRow, count: int) -> None:
        """The target computed the last token and committed ``count`` more; the step's states are captured."""
        row.hidden.append(len(row.tokens) - 1, self.states(len(row.tokens) - 1, len(row.tokens) - 1 + count))
        cast(list[int], row.tokens).extend(self.rng.randrange(SIZES.vocab) for _ in range(count))

    def propose(self, rows: Sequence[DraftRow], k: int = 3) -> DraftBatch:
        """A draft of ``k`` levels for each row."""
        out = DraftBatch.allocate(len(rows), k * self.width)
        for row in rows:
            row.k, row.room, row.width = k, k * self.width, self.width
        self.drafter.propose(DraftContext(list(rows)), out)
        return out

    def scores(self, row: DraftRow) -> Tensor:
        """The drafter's scores [Vd] behind the row's last token."""
        return self.drafter.catch_up([row])[0][self.head.spec.ids]

    def expected(self, row: DraftRow, first: int = 0) -> Tensor:
        """The same, computed at once from all entries from position ``first`` on."""
        end = len(row.tokens) - 1
        run = Run(self.head, pages=range(2, 60), first=first)
        return run.enter(torch.tensor(row.tokens[first + 1 :]), self.head.fuse(self.states(first, end)))[1][-1]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> RecurrentHead:
    """A random EAGLE-3 head in float64."""
    return load(original_eagle3(SIZES), tmp_path_factory.mktemp("head"), fake_target(SIZES).facts)


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the order of sums."""
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 70),
    st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 3),
)
def test_scores_are_a_function_of_the_tokens(
    head: RecurrentHead, prompt: int, steps: list[tuple[int, bool]], width: int
) -> None:
    """Whatever was drafted, skipped or left to wait before, the scores are those of all entries computed at once."""
    life = Life(head, width)
    row = life.begin("a", range(10, 30), [life.rng.randrange(SIZES.vocab) for _ in range(prompt)])
    row.hidden.append(0, life.states(0, prompt))
    cast(list[int], row.tokens).append(1)
    for count, drafted in steps:
        if drafted:
            life.propose([row])
        life.grow(row, count)
    assert close(life.scores(row), life.expected(row))


def test_a_tree_is_the_chains_of_its_paths(head: RecurrentHead) -> None:
    """What a tree drafts along its likeliest path is what a chain drafts."""
    drafts = []
    for width in (1, 3):
        life = Life(head, width)
        row = life.begin("a", range(10, 30), list(range(1, 20)))
        row.hidden.append(0, life.states(0, 19))
        cast(list[int], row.tokens).append(5)
        out = life.propose([row], 4)
        at, path = -1, []
        for node in range(int(out.n[0])):
            if out.parents[0, node] == at:
                path.append(int(out.tokens[0, node]))
                at = node
        drafts.append(path)
        assert all(out.parents[0, i] < i for i in range(int(out.n[0])))
    assert len(drafts[0]) == 4
    assert len(drafts[1]) >= 2
    assert drafts[1] == drafts[0][: len(drafts[1])]


def test_rows_of_a_batch_do_not_mix(head: RecurrentHead) -> None:
    """Rows of different lengths in one call get the scores that they get alone."""
    life, rows = Life(head, 2), []
    for i, length in enumerate((3, 30, 17)):
        row = life.begin(f"r{i}", range(10 + 20 * i, 30 + 20 * i), list(range(1, length + 1)))
        row.hidden.append(0, life.states(0, length))
        cast(list[int], row.tokens).append(7)
        rows.append(row)
    life.propose(rows)
    for row in rows:
        life.grow(row, 2)
    together = life.drafter.catch_up(rows)
    for row, scores in zip(rows, together, strict=True):
        assert close(scores[head.spec.ids], life.expected(row))


def test_a_shared_prefix_is_taken_over_whole(head: RecurrentHead) -> None:
    """A sequence whose prefix pages another one filled has all entries: no block is dropped, nothing computed twice."""
    life, prefix = Life(head), [3 * i % SIZES.vocab for i in range(2 * PAGE)]
    first = life.begin("a", range(10, 30), [*prefix, 4, 5])
    first.hidden.append(0, life.states(0, 2 * PAGE + 2))
    cast(list[int], first.tokens).append(1)
    life.propose([first])
    second = life.begin("b", [10, 11, *range(40, 50)], [*prefix, 8, 9, 9])
    second.hidden.append(2 * PAGE, life.states(2 * PAGE, 2 * PAGE + 3))
    cast(list[int], second.tokens).append(2)
    assert close(life.scores(second), life.expected(second))


def test_a_page_that_changes_hands_is_forgotten(head: RecurrentHead) -> None:
    """Behind a page that now holds something else, drafting begins where states begin."""
    life, prefix = Life(head), [3 * i % SIZES.vocab for i in range(2 * PAGE)]
    first = life.begin("a", range(10, 30), [*prefix, 4, 5])
    first.hidden.append(0, life.states(0, 2 * PAGE + 2))
    cast(list[int], first.tokens).append(1)
    life.propose([first])
    life.listeners[0](11)
    second = life.begin("b", [10, 11, *range(40, 50)], [*prefix, 8, 9, 9])
    second.hidden.append(2 * PAGE, life.states(2 * PAGE, 2 * PAGE + 3))
    cast(list[int], second.tokens).append(2)
    assert close(life.scores(second), life.expected(second, first=2 * PAGE))


def test_a_gap_of_states_begins_anew(head: RecurrentHead) -> None:
    """Where states were not captured for a while, entries before the gap are not seen."""
    life = Life(head)
    row = life.begin("a", range(10, 30), list(range(1, 20)))
    row.hidden.append(0, life.states(0, 19))
    cast(list[int], row.tokens).append(5)
    life.propose([row])
    cast(list[int], row.tokens).extend([6, 7, 8])
    life.grow(row, 4)
    assert close(life.scores(row), life.expected(row, first=22))


def test_without_its_last_state_a_row_gets_no_draft(head: RecurrentHead) -> None:
    """A row whose last step was not captured is left out; its neighbour is not."""
    life, rows = Life(head), []
    for i in range(2):
        row = life.begin(f"r{i}", range(10 + 20 * i, 30 + 20 * i), [1, 2, 3])
        row.hidden.append(0, life.states(0, 3))
        cast(list[int], row.tokens).append(7)
        rows.append(row)
    cast(list[int], rows[0].tokens).append(8)
    out = life.propose(rows)
    assert list(out.n) == [0, 3]


def test_states_that_pile_up_are_taken_in(head: RecurrentHead) -> None:
    """However long nobody asks, no more than a bounded number of states wait, and none is lost."""
    life = Life(head)
    row = life.begin("a", range(10, 90), [1] * (MAX_WAITING + 40))
    for start in range(0, MAX_WAITING + 40, 64):
        end = min(start + 64, MAX_WAITING + 40)
        row.hidden.append(start, life.states(start, end))
        if len(row.hidden) >= MAX_WAITING:
            life.drafter.prefill(DraftContext([row]))
    assert len(row.hidden) < MAX_WAITING
    cast(list[int], row.tokens).append(5)
    assert close(life.scores(row), life.expected(row))


def test_ids_beyond_the_tokenizers_are_left_out() -> None:
    """A head's vocabulary may reach into the padding of its target's: those ids are never drafted."""
    ids = torch.tensor([1, 9, 3, 12])
    kept, known = known_ids(ids, 9)
    assert kept is not None
    assert known is not None
    assert (kept.tolist(), known.tolist()) == ([1, 3], [0, 2])
    assert known_ids(ids, 13) == (ids, None)
    assert known_ids(None, 13) == (None, None)
