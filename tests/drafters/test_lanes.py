"""Drafting in lanes, where nothing asks the host, is drafting: the same chains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest
import torch

from specproxy.drafters.base import DraftContext, DraftRow
from specproxy.drafters.head import HeadDrafter
from specproxy.heads.base import RecurrentHead
from tests.drafters.lane_life import PAGE, House, Life, Place, Rounds, Start, both, house

KINDS = ["eagle3", "mtp", "medusa", "draft_model", "layer_skip"]
STARTS = [Start(0, 38), Start(1, 5), Start(2, 30, since=10)]
"""A sequence that is longer than a lane takes at once, a short one, and one whose states begin late."""


@pytest.fixture(autouse=True)
def _references(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels' plain forms: they are tested in ``tests/gpu_kernels``. No gradients; one thread, as others run."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def home() -> House:
    """The house target in float32."""
    return house(Place())


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", KINDS)
def test_lanes_draft_what_rows_draft(home: House, kind: str, temperature: float) -> None:
    """Beside a dead lane and in another order than the rows', greedy or coupled: chains at entry, after rounds that
    accepted something, and behind the lanes are those of a drafter that never saw any."""
    both(home, kind, STARTS, [2, None, 0, 1], temperature)


@pytest.mark.parametrize("kind", KINDS)
def test_one_lane_drafts_what_its_row_drafts(home: House, kind: str) -> None:
    """A lane alone."""
    both(home, kind, STARTS[1:2], [0], 0.8, steps=4)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["eagle3", "mtp"])
def test_trees_in_lanes(home: House, kind: str, temperature: float) -> None:
    """A tree's tokens are those that the same head draws level by level, each node seeing its own path alone."""
    plain, other = (Life(home, kind, STARTS, temperature) for _ in range(2))
    rounds = Rounds(other, [2, None, 0, 1], 5, 12)
    form = rounds.drafter.form(4, 12, 2)
    assert [len(nodes) for nodes in form.inner] == [2, 3, 3]
    for step in range(3):
        assert rounds.draft(form) == plain.tree(form), f"step {step}"
        counts = [1 + (step + number) % 4 for number in range(len(STARTS))]
        rounds.commit(counts)
        for number, count in enumerate(counts):
            plain.commit(number, count)


def test_a_tree_of_parallel_heads(home: House) -> None:
    """Of Medusa's levels the two best stand under every node of the level above."""
    lives = [Life(home, "medusa", STARTS[:2]) for _ in range(2)]
    chains, trees = (Rounds(life, [0, 1], 5, 8) for life in lives)
    form = trees.drafter.form(3, 8, 2)
    for line, tree in zip(chains.draft(trees.drafter.form(3, 3, 1)), trees.draft(form), strict=True):
        for token, (_, rank, level) in zip(tree, form.nodes, strict=True):
            assert (token == line[level]) == (rank == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_drafter_says_whether_it_can(home: House, kind: str) -> None:
    """On the GPU's path it can."""
    assert Life(home, kind, STARTS[:1]).drafter.needs.lanes


@pytest.mark.parametrize(("steps", "capturable"), [(2, True), (None, False)])
def test_heads_that_cannot_be_captured_say_so(home: House, steps: int | None, *, capturable: bool) -> None:
    """Neither several modules nor experts run in lanes."""
    life = Life(home, "eagle3", STARTS[:1])
    head = cast(RecurrentHead, home.heads["eagle3"])

    class Other:
        """The head, described otherwise."""

        spec = replace(head.spec, steps=steps, capturable=capturable)

    pages = cast(HeadDrafter, life.drafter)._pages
    assert not HeadDrafter("x", cast(RecurrentHead, Other()), pages, 8000, 8, lanes=True).needs.lanes


@pytest.mark.parametrize("kind", ["eagle3", "mtp", "medusa"])
def test_without_its_last_state_a_row_stays_outside(home: House, kind: str) -> None:
    """A row whose last step was not captured cannot enter."""
    life = Life(home, kind, STARTS[:1])
    life.commit(0, 2, captured=False)
    rounds = Rounds(life, [None], 5, 3)
    assert rounds.drafter.enter(life.rows[0], 5) is None


@pytest.mark.parametrize("kind", ["eagle3", "mtp", "medusa"])
def test_behind_lanes_nothing_old_is_drafted_from(home: House, kind: str) -> None:
    """A row that leaves without the last states gets no draft, as any row whose step was not captured."""
    life = Life(home, kind, STARTS[:1])
    rounds = Rounds(life, [0], 5, 3)
    rounds.drafter.leave(life.rows[0], len(life.rows[0].tokens) - 1)
    if kind != "medusa":
        life.commit(0, 1, captured=False)
    assert life.propose(3) == [[]]


@pytest.mark.parametrize("kind", ["eagle3", "mtp", "draft_model"])
def test_pages_filled_in_a_lane_are_shared(home: House, kind: str) -> None:
    """A sequence that goes on from pages which another one filled in a lane guesses as if it had filled them itself."""
    life, plain = (Life(home, kind, STARTS[:1]) for _ in range(2))
    rounds = Rounds(life, [0], 5, 3)
    for _ in range(9):
        rounds.draft()
        rounds.commit([3])
    rounds.leave()
    plain.commit(0, 27)
    shared = 3 * PAGE
    known, sampler, pages = len(life.rows[0].tokens), life.rows[0].sampler, life.rows[0].pages
    row = DraftRow("b", life.texts[0][:known], known, 0, "", sampler, pages=[*pages[:3], *range(50, 55)])
    row.hidden.append(shared, life.states[0][shared : known - 1])
    life.drafter.prefill(DraftContext([row]))
    life.rows[0] = row
    assert known > 4 * PAGE
    torch.testing.assert_close(life.scores(), plain.scores(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["eagle3", "draft_model"])
def test_a_drafted_token_beyond_the_limit_writes_nothing(home: House, kind: str) -> None:
    """Of a lane that may draft one token, further levels change no slot but the one for padding."""
    life = Life(home, kind, STARTS[:1])
    rounds = Rounds(life, [0], 5, 3)
    kv = life.drafter._kv if kind == "draft_model" else life.drafter._pages.kv  # type: ignore[attr-defined]
    rounds.lanes.numbers.limit[0] = 1
    before = kv.layers[0].clone()
    rounds.draft()
    changed = (kv.layers[0] != before).any(2).any(0).nonzero()[:, 0].tolist()
    known, pages = len(life.rows[0].tokens), life.rows[0].pages
    assert changed == [kv.trash_slot, *(pages[p // PAGE] * PAGE + p % PAGE for p in (known - 1, known))]


@pytest.mark.parametrize("kind", ["eagle3", "draft_model"])
def test_a_stopped_lane_writes_nothing(home: House, kind: str) -> None:
    """Pages of a sequence that is gone may be another's by now: only the slot for padding changes."""
    life = Life(home, kind, STARTS[:1])
    rounds = Rounds(life, [0], 5, 3)
    kv = life.drafter._kv if kind == "draft_model" else life.drafter._pages.kv  # type: ignore[attr-defined]
    rounds.lanes.numbers.limit[0] = -1
    before = kv.layers[0].clone()
    rounds.draft()
    assert (kv.layers[0] != before).any(2).any(0).nonzero()[:, 0].tolist() == [kv.trash_slot]
