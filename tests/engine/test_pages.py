"""Pages: shared by content, salted by tenant, never lost."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.engine.pages import PagePool, page_hash


def pool(pages: int = 10) -> tuple[PagePool, list[int]]:
    """A pool and the list of pages that changed hands."""
    cleared: list[int] = []
    return PagePool(pages, 4, 4, cleared.append), cleared


def test_a_page_is_announced_before_it_is_handed_out() -> None:
    """Whoever keeps something about a page hears of its new owner."""
    p, cleared = pool()
    assert cleared == [p.allocate(None)]


def test_neighbours_are_preferred() -> None:
    """A sequence that grows gets the page behind its last one."""
    p, _ = pool()
    first = p.allocate(None)
    assert first is not None
    assert p.allocate(first) == first + 1


def test_sequences_start_at_slabs() -> None:
    """New sequences start as far apart as one can get long, so that their pages lie at even distances."""
    p, _ = pool(14)
    assert [p.allocate(None) for _ in range(3)] == [2, 6, 10]
    assert p.allocate(None) == 13


def test_reserved_pages_are_never_handed_out() -> None:
    """Page 0 pads, page 1 takes the writes of padding rows."""
    p, _ = pool()
    pages = [p.allocate(None) for _ in range(8)]
    assert sorted(pages) == list(range(2, 10))
    assert p.allocate(None) is None


def test_released_content_is_found_until_it_is_needed() -> None:
    """An idle page keeps its content; it is taken back last, the longest idle first."""
    p, _ = pool(4)
    a, b = p.allocate(None), p.allocate(None)
    p.register(a, b"a")
    p.register(b, b"b")
    p.release(b)
    p.release(a)
    assert p.share(b"a") == a
    assert p.allocate(None) == b
    assert p.share(b"b") is None


def test_hashes_tell_prefix_tenant_and_provenance_apart() -> None:
    """Equal tokens behind another prefix, of another tenant or made another way are another page."""
    base = page_hash(b"", [1, 2], "prompt", "")
    others = [
        page_hash(b"x", [1, 2], "prompt", ""),
        page_hash(b"", [2, 1], "prompt", ""),
        page_hash(b"", [1, 2], "generated", ""),
        page_hash(b"", [1, 2], "prompt", "tenant"),
    ]
    assert len({base, *others}) == 5
    assert page_hash(b"", [1, 2], "prompt", "") == base


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["take", "drop", "name", "find"]), st.integers(0, 7)), max_size=60))
def test_every_page_is_free_idle_or_held(moves: list[tuple[str, int]]) -> None:
    """Whatever happens, counts add up, and no page has two owners that did not share it."""
    p, _ = pool()
    held: list[int] = []
    for move, n in moves:
        if move == "take":
            page = p.allocate(held[-1] if held else None)
            if page is not None:
                assert page not in held
                held.append(page)
            else:
                assert p.available == 0
        elif move == "drop" and held:
            p.release(held.pop(n % len(held)))
        elif move == "name" and held:
            p.register(held[n % len(held)], bytes([n]))
        elif move == "find":
            page = p.share(bytes([n]))
            if page is not None:
                held.append(page)
        assert p.used == len(set(held))
        assert p.used + p.available == p.total
        assert p.cached <= p.available
    for page in held:
        p.release(page)
    assert p.used == 0
    p.forget_idle()
    assert p.cached == 0
    assert p.available == p.total
