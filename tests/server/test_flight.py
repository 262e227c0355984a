"""Flights: what a sequence has received survives its engine, and deltas can become one."""

from __future__ import annotations

from specproxy.server.flight import Flight, is_last, merge
from specproxy.vocabulary import Decision, Delta, ErrorInfo, SamplingParams, SequenceStats, Submission, TokenLogprob


def flight(generated: list[int] | None = None, took: list[Delta] | None = None) -> Flight:
    """A fresh flight, whose deltas end up in ``took``."""
    submission = Submission("s", [1, 2], 7, SamplingParams(), Decision("r", "x"), generated=generated or [])
    return Flight(submission, (took if took is not None else []).append)


def test_merging_keeps_tokens_logprobs_and_the_end() -> None:
    """Two deltas in order say the same as one."""
    first = Delta("s", [1], [TokenLogprob(1, -0.1)], prompt_logprobs=[TokenLogprob(9, -0.5)])
    second = Delta("s", [2, 3], [TokenLogprob(2, -0.2), TokenLogprob(3, -0.3)], finish_reason="stop", stop_token=3)
    second.stats = SequenceStats(steps=2)
    one = merge(first, second)
    assert one.tokens == [1, 2, 3]
    assert [entry.token for entry in one.logprobs or ()] == [1, 2, 3]
    assert one.prompt_logprobs == [TokenLogprob(9, -0.5)]
    assert (one.finish_reason, one.stop_token, one.stats) == ("stop", 3, SequenceStats(steps=2))


def test_a_resumed_submission_carries_what_was_generated_and_received() -> None:
    """The next engine process goes on behind the last token that the server has seen."""
    one = flight([10])
    assert one.resumed().generated == [10]
    one.push(Delta("s", [11, 12]))
    assert one.resumed().generated == [10, 11, 12]
    assert one.resumed().prompt == [1, 2]


def test_a_sequence_in_two_deaths_without_a_token_between_them_is_not_tried_again() -> None:
    """It is taken for their cause; a token between them shows that it is not."""
    barren = flight()
    barren.push(Delta("s"))
    assert barren.died()
    barren.push(Delta("s"))
    assert not barren.died()
    lively = flight()
    lively.push(Delta("s"))
    assert lively.died()
    lively.push(Delta("s", [1]))
    assert lively.died()


def test_a_sequence_that_only_waited_is_no_suspect() -> None:
    """Engines may die as often as they like before work on it began; the beginning itself is not handed on."""
    took: list[Delta] = []
    waiting = flight(took=took)
    assert all(waiting.died() for _ in range(9))
    waiting.push(Delta("s"))
    assert waiting.died()
    assert waiting.died()
    assert took == []


def test_prompt_logprobs_are_delivered_once() -> None:
    """A new engine process reports them again; the client has them already."""
    took: list[Delta] = []
    one = flight(took=took)
    one.push(Delta("s", [1], prompt_logprobs=[TokenLogprob(2, -0.5)]))
    one.push(Delta("s", [2], prompt_logprobs=[TokenLogprob(2, -0.5)]))
    assert [delta.prompt_logprobs is not None for delta in took] == [True, False]


def test_an_error_or_a_finish_reason_ends_a_sequence() -> None:
    """Nothing follows either."""
    assert is_last(Delta("s", finish_reason="length"))
    assert is_last(Delta("s", error=ErrorInfo("gone")))
    assert not is_last(Delta("s", [1]))
