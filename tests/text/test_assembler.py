"""One sequence put together: the same whatever bursts its tokens came in."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.text.assembler import Assembler, Ending, Piece, TextOptions
from specproxy.text.stops import StopString
from specproxy.text.tokenizer import Tokenizer


def options(*stops: str, include_stop: bool = False, min_tokens: int = 0) -> TextOptions:
    """Text options with these stop strings."""
    return TextOptions(tuple(map(StopString.compile, stops)), include_stop=include_stop, min_tokens=min_tokens)


def assemble(
    tokenizer: Tokenizer, groups: list[list[int]], how: TextOptions, ending: Ending, stop_token: int | None = None
) -> tuple[str, int, list[int], Ending | None, str | int | None]:
    """Everything that an answer shows of one sequence whose tokens come in ``groups``."""
    assembler = Assembler(tokenizer, [1], how)
    total = Piece()
    for i, group in enumerate(groups):
        last = i == len(groups) - 1
        piece = assembler.push(group, ending if last else None, stop_token if last else None)
        total.text += piece.text
        total.tokens += piece.tokens
        total.offsets += piece.offsets
        total.ending = piece.ending or total.ending
        total.stop = piece.stop if piece.stop is not None else total.stop
    return total.text, total.tokens, total.offsets, total.ending, total.stop


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    """Tokens, likely to be ASCII text or parts of characters, and a way to cut them into bursts."""
    ids = draw(st.lists(st.one_of(st.integers(0, 300), st.integers(0, 8191)), min_size=1, max_size=40))
    cuts = sorted({0, len(ids), *draw(st.lists(st.integers(0, len(ids)), max_size=8))})
    return ids, [ids[a:b] for a, b in pairwise(cuts)]


@settings(max_examples=300, deadline=None)
@given(
    case=grouped(),
    stops=st.lists(st.text(alphabet=" abe\ufffd.", min_size=1, max_size=3), max_size=4),
    include=st.booleans(),
    min_tokens=st.integers(0, 8),
    ending=st.sampled_from(["stop", "length"]),
)
def test_grouping_changes_nothing(
    house: Tokenizer,
    case: tuple[list[int], list[list[int]]],
    stops: list[str],
    include: bool,
    min_tokens: int,
    ending: Ending,
) -> None:
    """Text, counted tokens, offsets, finish reason and stop are those of one token at a time."""
    ids, groups = case
    how = options(*stops, include_stop=include, min_tokens=min_tokens)
    stop_token = ids[-1] if ending == "stop" else None
    one_by_one = assemble(house, [[token] for token in ids], how, ending, stop_token)
    assert assemble(house, groups, how, ending, stop_token) == one_by_one


def test_tokens_behind_a_stop_string_do_not_count(house: Tokenizer) -> None:
    """The token that completes the stop string is the last that counts, and later pushes are ignored."""
    ids = house.encode("one two three four", special=False)
    assembler = Assembler(house, [1], options(" three"))
    piece = assembler.push(ids)
    before = len(house.encode("one two three", special=False))
    assert (piece.text, piece.tokens, piece.ending, piece.stop) == ("one two", before, "stop", " three")
    assert assembler.ended
    assert assembler.push(ids) == Piece()
    assert assembler.num_tokens == before


def test_stop_string_wins_over_the_engines_reason(house: Tokenizer) -> None:
    """A stop string in the last burst ends the answer, though the engine had stopped for length."""
    ids = house.encode("a.b", special=False)
    assert assemble(house, [ids], options("."), "length")[3:] == ("stop", ".")


def test_end_token_has_no_text(house: Tokenizer) -> None:
    """The token that ended the answer counts; its text shows only where stops are included and specials kept."""
    ids = [*house.encode("hi", special=False), 2]
    shown = TextOptions(skip_special=False)
    included = TextOptions(skip_special=False, include_stop=True)
    assert assemble(house, [ids], shown, "stop", 2)[:2] == ("hi", len(ids))
    assert assemble(house, [ids], included, "stop", 2)[0] == "hi<|im_end|>"


def test_held_back_text_comes_at_the_end(house: Tokenizer) -> None:
    """The start of a stop string that never completes is shown when the tokens end."""
    ids = house.encode("a EN", special=False)
    assembler = Assembler(house, [1], options("END"))
    assert assembler.push(ids).text == "a "
    assert assembler.push([], "length").text == "EN"


def test_min_tokens_disarms_stop_strings(house: Tokenizer) -> None:
    """A stop string that ends before the minimum is text like any other."""
    ids = house.encode("a.b.c", special=False)
    text, num, _, ending, _ = assemble(house, [ids], options(".", min_tokens=3), "length")
    assert (text, num, ending) == ("a.b", 3, "stop")


def test_offsets_are_characters(house: Tokenizer) -> None:
    """Offsets count characters of the text, and parts of one character share its start."""
    ids = house.encode("é\U0001f600x", special=False)
    offsets = assemble(house, [ids], options(), "length")[2]
    assert offsets[0] == 0
    assert offsets[-1] == 2
    assert set(offsets) == {0, 1, 2}
