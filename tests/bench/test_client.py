"""Reading a stream after it ended, as if it had been read while it came."""

from __future__ import annotations

from specproxy.bench.client import events


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
