"""Whose turn it is: a prompt's next chunk, or the step of the answers that run."""

from __future__ import annotations

from specproxy.engine.turns import MOST_CHUNKS, Turns
from specproxy.vocabulary import Delta


def turns_of(turns: Turns, count: int, tokens: int, *, decoding: bool = True) -> str:
    """``count`` turns while a prompt waits and each step brings two answers so many tokens: p for a chunk, d for a
    step."""
    said = ""
    for _ in range(count):
        if turns.prompts_turn(decoding=decoding):
            said += "p"
        else:
            said += "d"
            turns.decoded([Delta("a", [1] * tokens), Delta("b", [2] * tokens), Delta("c")])
    return said


def test_plain_steps_and_chunks_alternate() -> None:
    """A chunk for each token."""
    assert turns_of(Turns(), 9, 1) == "pdpdpdpdp"


def test_as_many_chunks_as_a_step_brings_tokens() -> None:
    """Once it is seen that steps bring three tokens, three chunks come between two of them; a lucky step changes
    little."""
    turns = Turns()
    turns_of(turns, 200, 3)
    assert "dpppdpppd" in turns_of(turns, 16, 3)
    turns = Turns()
    turns.decoded([Delta("a", [1] * 4)])
    assert turns_of(turns, 4, 1) == "pdpd"


def test_an_answer_never_waits_for_more_than_so_many() -> None:
    """Not even where a step brings it a dozen tokens."""
    turns = Turns()
    said = turns_of(turns, 200, 12)
    assert "p" * MOST_CHUNKS in said
    assert "p" * (MOST_CHUNKS + 1) not in said


def test_nobody_waits_for_nobody() -> None:
    """Where no answer runs, chunk follows chunk."""
    assert turns_of(Turns(), 10, 1, decoding=False) == "p" * 10
