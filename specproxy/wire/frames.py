"""Frames: msgspec Structs in MessagePack, each behind a 5-byte header (version, big-endian length).

The server sends Submit, Abort, UpdateDecision, Background, Audit, LoadDrafter, UnloadDrafter; the engine sends Hello
once it is ready to work (or Failed when it cannot start), then Tokens, Audited and, about once a second, Stats.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from specproxy.bundle import AuditBundle, AuditResult
from specproxy.errors import WireError
from specproxy.vocabulary import Decision, Delta, DrafterInfo, ModelInfo, Numerics, Submission

PROTOCOL = 2
MAX_FRAME = 256 * 2**20
_HEADER = struct.Struct(">BI")


class Hello(Struct, tag="hello"):
    """The engine is loaded and self-tested. ``load_s``: seconds from process start to readiness."""

    pid: int
    model: ModelInfo
    numerics: Numerics
    drafters: list[DrafterInfo]
    num_pages: int
    page_size: int
    max_sequences: int
    load_s: float


class Failed(Struct, tag="failed"):
    """The engine cannot start; ``message`` is for the user."""

    message: str


class Submit(Struct, tag="submit"):
    """Generate this sequence."""

    submission: Submission


class Abort(Struct, tag="abort"):
    """Forget this sequence; unknown ids are ignored. No frame about it follows.

    With ``report`` (a stop string ended the answer, so its counts still matter) exactly one last Delta without tokens
    follows: ``finish_reason="abort"`` and ``stats``. If the sequence had just ended by itself, it is its own last one.
    """

    id: str
    report: bool = False


class UpdateDecision(Struct, tag="update_decision"):
    """Take a new decision for running sequences from the next step on: one sequence, or a whole route (kill switch)."""

    decision: Decision
    id: str | None = None
    route: str | None = None


class Background(Struct, tag="background"):
    """A job of the background class (shadow): a submission that never delays a user's work."""

    submission: Submission


Share = Annotated[float, Meta(ge=0, le=1)]


class Audit(Struct, tag="audit"):
    """Compute a served answer again. Answered by exactly one Audited, whatever becomes of it; an engine that dies takes
    its audits with it.

    Shares of the wall time that audits of the bundle's route may take: while no user has a sequence in the engine, and
    while some have. They hold for all audits of the route from this frame on; 0 means not at all. A user's step waits
    for one chunk of 64 tokens at most.
    """

    bundle: AuditBundle
    idle_share: Share = 1.0
    busy_share: Share = 0.0


class Audited(Struct, tag="audited"):
    """An audit has ended."""

    result: AuditResult


class LoadDrafter(Struct, tag="load_drafter"):
    """Load a drafter beside the running ones, or in place of the one of that name once it works. ``options``: its own,
    ``path`` and ``max_k``. Answered by exactly one DrafterChanged."""

    name: str
    drafter_type: str
    options: dict[str, str | int | float | bool | None]


class UnloadDrafter(Struct, tag="unload_drafter"):
    """Drop a drafter; rows that use it run plain from the next step on; an unknown name is no error. Answered by
    exactly one DrafterChanged."""

    name: str


class DrafterChanged(Struct, tag="drafter_changed"):
    """The drafters now loaded; ``error``: why the change was refused, and then they are what they were before."""

    drafters: list[DrafterInfo]
    error: str | None = None


class Tokens(Struct, tag="tokens"):
    """What one engine step produced, for every sequence that it touched."""

    deltas: list[Delta]


class Stats(Struct, tag="stats"):
    """State of the engine; counters run from its start. ``step_s``: (kind, seconds) of steps since the last frame.
    ``audits``: those that wait or run."""

    running: int
    waiting: int
    background: int
    pages_used: int
    pages_cached: int
    pages_total: int
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    steps: int
    step_s: list[tuple[str, float]] = []
    audits: int = 0


ToEngine = Submit | Abort | UpdateDecision | Background | Audit | LoadDrafter | UnloadDrafter
ToServer = Hello | Failed | Tokens | Stats | Audited | DrafterChanged

_encoder = msgspec.msgpack.Encoder()


def encode(frame: ToEngine | ToServer) -> bytes:
    """One frame with its header."""
    body = _encoder.encode(frame)
    return _HEADER.pack(PROTOCOL, len(body)) + body


T = TypeVar("T")


class FrameReader(Generic[T]):
    """Cuts a byte stream into frames of one direction.

    >>> reader = FrameReader(ToServer)
    >>> [type(f).__name__ for f in reader.feed(encode(Failed("no such path")))]
    ['Failed']
    """

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """Yield every frame completed by ``data``.

        Raises WireError when the peer speaks another version or sends what is not a frame.
        """
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _HEADER.size:
                version, length = _HEADER.unpack_from(self._buffer, start)
                if version != PROTOCOL or length > MAX_FRAME:
                    raise WireError(f"expected protocol {PROTOCOL}, got version {version}, length {length}")
                end = start + _HEADER.size + length
                if len(self._buffer) < end:
                    break
                body = bytes(memoryview(self._buffer)[start + _HEADER.size : end])
                start = end
                try:
                    yield self._decoder.decode(body)
                except msgspec.MsgspecError as error:
                    raise WireError(f"a frame could not be decoded: {error}") from None
        finally:
            del self._buffer[:start]
