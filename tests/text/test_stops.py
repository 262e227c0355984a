"""The stop matcher against a search over the whole text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.text.stops import StopMatcher, StopString

stops_of = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=4)
texts = st.lists(st.text(alphabet="abc", max_size=6), max_size=12)


def run(stops: list[str], pieces: list[str], *, include: bool = False, unarmed: int = 0) -> tuple[list[str], str, int]:
    """Shown pieces, the stop string found (or ""), and how many pieces were read."""
    matcher = StopMatcher(tuple(map(StopString.compile, stops)))
    shown = []
    for i, piece in enumerate(pieces):
        text, found = matcher.push(piece, armed=i >= unarmed, include=include)
        shown.append(text)
        if found:
            return shown, found, i + 1
    return [*shown, matcher.flush()], "", len(pieces)


def search(stops: list[str], text: str, start: int = 0) -> tuple[int, str] | None:
    """End and stop string of the match that ends first behind ``start``; the longest of those that end there."""
    for end in range(start + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


@settings(max_examples=500)
@given(stops=stops_of, pieces=texts, include=st.booleans(), unarmed=st.integers(0, 3))
def test_equals_search(stops: list[str], pieces: list[str], include: bool, unarmed: int) -> None:
    """However the text is cut, it ends where a search over the whole text says."""
    text = "".join(pieces)
    match = search(stops, text, len("".join(pieces[:unarmed])))
    shown, found, _ = run(stops, pieces, include=include, unarmed=unarmed)
    if match is None:
        assert ("".join(shown), found) == (text, "")
    else:
        end, stop = match
        assert ("".join(shown), found) == (text[: end if include else end - len(stop)], stop)


@settings(max_examples=200)
@given(stops=stops_of, pieces=texts)
def test_holds_back_no_more_than_a_possible_start(stops: list[str], pieces: list[str]) -> None:
    """What is held back while the text goes on is the start of a stop string."""
    matcher = StopMatcher(tuple(map(StopString.compile, stops)))
    text = shown = ""
    for piece in pieces:
        more, found = matcher.push(piece)
        if found:
            return
        text, shown = text + piece, shown + more
        held = text[len(shown) :]
        assert text == shown + held
        assert not held or any(stop.startswith(held) for stop in stops)


def test_stop_within_a_piece_cuts_the_rest() -> None:
    """Text behind the stop string is gone, even when one token brought both."""
    assert run(["\n"], ["a\nb"]) == (["a"], "\n", 1)
    assert run(["\n"], ["a\nb"], include=True) == (["a\n"], "\n", 1)


def test_stop_across_pieces() -> None:
    """A stop string spread over pieces is never shown in part."""
    assert run(["END"], ["x E", "N", "D y"]) == (["x ", "", ""], "END", 3)
    assert run(["END"], ["x E", "N", "X"]) == (["x ", "", "ENX", ""], "", 3)


def test_longest_of_those_that_end_together() -> None:
    """Of two stop strings with the same last character the longer is cut."""
    assert run(["b", "ab"], ["xa", "b"]) == (["x", ""], "ab", 2)
