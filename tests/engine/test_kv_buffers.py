"""Keys and values come back from where they were stored, by view, by gather and by table."""

from __future__ import annotations

import pytest
import torch

from specproxy.kernels.paged import KVBuffers, LayerShape

PAGE = 4
SHAPES = [LayerShape(2, 3, 3), LayerShape(3, 5, 2), LayerShape(1, 2, 6)]
"""Keys as wide as values, wider, and narrower."""


@pytest.fixture
def kv() -> KVBuffers:
    """Ten pages."""
    return KVBuffers.allocate(SHAPES, 10, PAGE, torch.float32, "cpu")


def stored(kv: KVBuffers, layer: int, pages: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random keys [L, Hk, Dk] and values [L, Hk, Dv], written to ``pages`` in order."""
    shape, count = kv.shapes[layer], len(pages) * PAGE
    keys, values = torch.randn(count, shape.heads, shape.k_dim), torch.randn(count, shape.heads, shape.v_dim)
    slots = torch.tensor([page * PAGE + i for page in pages for i in range(PAGE)])
    kv.write(layer, slots, torch.cat([keys.flatten(1), values.flatten(1)], 1))
    return keys, values


@pytest.mark.parametrize("layer", range(len(SHAPES)))
def test_what_is_written_is_read(kv: KVBuffers, layer: int) -> None:
    """As a view where pages follow each other, gathered where they do not; two lanes at once."""
    first, second = stored(kv, layer, [2, 3]), stored(kv, layer, [5, 6])
    apart = [stored(kv, layer, [9, 4]), stored(kv, layer, [7, 8])]
    views = kv.read(layer, 2 * PAGE, 2, 3 * PAGE, 2 * PAGE)
    gathered = kv.gather(layer, kv.slots(torch.tensor([[9, 4], [7, 8]])))
    for part in (0, 1):
        assert torch.equal(views[part], torch.stack([first[part], second[part]]).transpose(1, 2))
        expected = torch.stack([each[part] for each in apart]).transpose(1, 2)
        assert torch.equal(gathered[part], expected)


@pytest.mark.parametrize("layer", range(len(SHAPES)))
def test_slots_are_copied_and_pages_cleared(kv: KVBuffers, layer: int) -> None:
    """A tree's path moves down with all heads; a page that is given away forgets everything, its neighbours nothing."""
    keys, values = stored(kv, layer, [2, 3])
    kv.copy_slots([11, 13], [8, 9])
    moved = kv.read(layer, 8, 1, 0, PAGE)
    for part, source in zip(moved, (keys, values), strict=True):
        assert torch.equal(part[0, :, 0], source[3])
        assert torch.equal(part[0, :, 1], source[5])
        assert torch.equal(part[0, :, 2], source[2])
    kv.zero_page(2)
    cleared, kept = kv.read(layer, 8, 1, 0, PAGE), kv.read(layer, 12, 1, 0, PAGE)
    assert not any(part.any() for part in cleared)
    assert torch.equal(kept[0][0], keys[4:].transpose(0, 1))
    assert torch.equal(kept[1][0], values[4:].transpose(0, 1))


def test_what_is_not_finite_is_not_stored(kv: KVBuffers) -> None:
    """A masked NaN would reach the output as 0 x NaN."""
    rows = torch.full((1, 12), float("nan"))
    rows[0, 3] = float("inf")
    kv.write(0, torch.tensor([9]), rows)
    assert all(torch.isfinite(part).all() for part in kv.read(0, 8, 1, 0, PAGE))


def test_gathering_copies_what_it_gathers_and_no_more(kv: KVBuffers) -> None:
    """Not the whole buffer: that once cost five million page faults in a minute, and no wrong token."""
    slots = kv.slots(torch.tensor([[9, 4]]))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kv.gather(0, slots)
    taken = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert taken <= 2 * 2 * PAGE * SHAPES[0].width * 4
