"""Reading a stream after it ended, as if it had been read while it came."""

from __future__ import annotations

from specproxy.bench.client import Answer, _take, events


def test_an_event_has_the_time_of_its_last_byte() -> None:
    """However the network cut the stream: a part may hold several events, or the end of one."""
    arrivals = [
        (0.1, b'data: {"a": 1}\n\ndata: {"b"'),
        (0.2, b": 2}"),
        (0.3, b'\n\n: keep-alive\n\ndata: {"c": 3}\r\n\r\ndata: [DO'),
        (0.4, b'NE]\n\ndata: {"d": 4}\n\n'),
    ]
    assert list(events(arrivals)) == [(0.1, {"a": 1}), (0.3, {"b": 2}), (0.3, {"c": 3})]


def test_a_stream_may_break_off() -> None:
    """What is not complete is no event."""
    assert list(events([(0.1, b'data: {"a": 1}\n\ndata: {"b": ')])) == [(0.1, {"a": 1})]


def test_the_counts_of_each_drafter_are_kept() -> None:
    """What the server says of its drafters is read, depth by depth; what a server leaves out is zero."""
    said = {"name": "mtp", "steps": 3, "drafted": 6, "accepted": 2, "drafted_at": [3, 3], "accepted_at": [2]}
    answer = Answer()
    _take(answer, {"specproxy": {"steps": 4, "drafted": 6, "drafters": [said, {"name": "ngram"}]}}, 0.1)
    mtp, ngram = answer.drafts
    assert (mtp.drafter, mtp.steps, mtp.drafted_at, mtp.accepted_at) == ("mtp", 3, [3, 3], [2])
    assert (ngram.drafter, ngram.steps, ngram.drafted_at) == ("ngram", 0, [])
