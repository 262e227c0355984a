"""Audits over the socket: one result for each, behind the users' tokens, at most one chunk between two steps."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from specproxy.audit.stock import StockPass
from specproxy.engine import auditing as making
from specproxy.engine.audits import Audits
from specproxy.engine.loop import Engine
from specproxy.engine.process import Link, Process
from specproxy.wire import frames
from specproxy.wire.frames import Audit, Audited, FrameReader, Submit, ToEngine, Tokens, ToServer
from tests.support.auditing import Auditing


def talk(auditing: Auditing, folder: Path, asked: list[ToEngine]) -> list[ToServer]:
    """Run the engine's process loop over a socket until all that was asked has ended; what it sent."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "s"))
    listener.listen()
    link = Link(str(folder / "s"))
    server, _ = listener.accept()
    server.sendall(b"".join(map(frames.encode, asked)))
    got: list[ToServer] = []

    def read() -> None:
        reader: FrameReader[ToServer] = FrameReader(ToServer)
        while sum(map(endings, got)) < len(asked):
            got.extend(reader.feed(server.recv(2**16)))
        server.close()

    thread = threading.Thread(target=read)
    thread.start()
    Process(link, auditing.driver.assembled).run()
    thread.join()
    link._socket.close()
    listener.close()
    return got


def endings(frame: ToServer) -> int:
    """How many jobs a frame ends."""
    if isinstance(frame, Tokens):
        return sum(delta.finish_reason is not None for delta in frame.deltas)
    return isinstance(frame, Audited)


def ended(got: list[ToServer], seq_id: str) -> int:
    """Index of the frame with a sequence's last delta."""
    return next(
        i
        for i, frame in enumerate(got)
        if isinstance(frame, Tokens) and any(d.id == seq_id and d.finish_reason for d in frame.deltas)
    )


def test_results_come_behind_what_users_wait_for(
    auditing: Callable[..., Auditing], mini: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Audits that arrive before a user's request are answered after its last token, each once, with what they found."""
    engine = auditing()
    bundles = engine.answers(mini[:3], "ngram", temperature=0.8)
    engine.audit(bundles[0])
    user = engine.driver.submission(mini[4]["ids"])
    got = talk(engine, tmp_path, [*map(Audit, bundles), Submit(user)])
    results = [(i, frame.result) for i, frame in enumerate(got) if isinstance(frame, Audited)]
    assert [result.request_id for _, result in results] == [bundle.request_id for bundle in bundles]
    assert {result.verdict for _, result in results} <= {"identical", "explained"}
    assert min(i for i, _ in results) > ended(got, user.id)


def test_a_users_step_waits_for_one_chunk_at_most(
    auditing: Callable[..., Auditing], mini: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where audits may take all the time there is, between two steps of the engine runs one chunk at most."""
    engine = auditing()
    bundles = engine.answers(mini[:6], temperature=0.8)
    engine.audit(bundles[0])
    order: list[str] = []

    def note(kind: type, name: str, letter: str) -> None:
        right = getattr(kind, name)

        def noted(self: Any, *given: Any) -> Any:
            order.append(letter)
            return right(self, *given)

        monkeypatch.setattr(kind, name, noted)

    note(Engine, "step", "s")
    note(StockPass, "step", "c")
    monkeypatch.setattr(making, "Audits", partial(Audits, patience=0.0))
    user = engine.driver.submission(mini[4]["ids"])
    got = talk(engine, tmp_path, [Submit(user), *(Audit(b, busy_share=1.0) for b in bundles)])
    assert "cc" not in "".join(order)
    first = next(i for i, frame in enumerate(got) if isinstance(frame, Audited))
    assert first < ended(got, user.id)
