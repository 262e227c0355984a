"""Drafters on a card: in lanes, captured, and over the GPU's kernels they draft what they draft beside them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from specproxy.heads.device_parts import DeviceAttention
from tests.drafters.lane_life import House, Life, Place, Rounds, Start, both, house
from tests.support.capturing import capture

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

KINDS = ["eagle3", "mtp", "medusa", "draft_model", "layer_skip"]
STARTS = [Start(0, 38), Start(1, 5), Start(2, 30, since=10)]


@pytest.fixture(autouse=True)
def _card() -> Iterator[None]:
    """No gradients."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def home() -> House:
    """The house target in bf16."""
    return house(Place("cuda", "bfloat16"))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", KINDS)
def test_lanes_draft_what_rows_draft(home: House, kind: str, temperature: float) -> None:
    """Rows do not see each other in any kernel, so that chains are the same in bf16 too."""
    both(home, kind, STARTS, [2, None, 0, 1], temperature)


@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_draft_is_the_draft(home: House, kind: str) -> None:
    """A graph that was captured once drafts, round after round, what rows are drafted."""
    plain, other = (Life(home, kind, STARTS, 0.8) for _ in range(2))
    rounds, k = Rounds(other, [0, 1, None, 2], 5, 3), 3
    form = rounds.drafter.form(k, k, 1)

    def work() -> torch.Tensor:
        rounds.lanes.begin()
        return rounds.drafter.draft(rounds.lanes, form)

    graph, chains = capture(work)
    for counts in ([1, 3, 2], [4, 1, 1], [2, 2, 2]):
        graph.replay()
        assert chains[[0, 1, 3]].tolist() == plain.propose(k)
        rounds.commit(counts)
        for number, count in enumerate(counts):
            plain.commit(number, count)


@pytest.mark.parametrize("kind", ["eagle3", "mtp"])
def test_heads_run_on_kernels(home: House, kind: str) -> None:
    """The house heads' attention is that of the GPU, and agrees with float32 on the CPU about most tokens."""
    cpu, k = house(Place()), 3
    assert any(isinstance(part, DeviceAttention) for part in _parts(home.heads[kind]))
    drafts = [Life(where, kind, STARTS).propose(k) for where in (home, cpu)]
    same = sum(a == b for ours, theirs in zip(*drafts, strict=True) for a, b in zip(ours, theirs, strict=True))
    assert same >= 6


def _parts(head: object) -> list[object]:
    """What a head is made of, down to the parts of attention."""
    found, waiting, seen = [], [head], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, torch.Tensor | str):
            continue
        seen.add(id(item))
        found.append(item)
        waiting += list(vars(item).values()) if hasattr(item, "__dict__") else []
        waiting += list(item) if isinstance(item, list | tuple) else []
    return found
