"""An answer in the making: deltas of every choice go in, bytes for the client come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specproxy.server.api.parsed import ParsedRequest
from specproxy.vocabulary import Delta, SequenceStats


@dataclass(frozen=True)
class AnswerMeta:
    """What every chunk repeats. ``created``: Unix seconds. ``system_fingerprint`` is constant for a loaded engine."""

    id: str
    created: int
    system_fingerprint: str


@dataclass(frozen=True, slots=True)
class Pushed:
    """What one delta led to. ``data``: SSE bytes to write now, may be empty (always, when not streaming).

    ``done``: the choice is complete; close its sequence (a stop string ends it before the engine knows).
    ``tokens``: how many of the delta's tokens count.
    """

    data: bytes
    done: bool
    tokens: int


class Answer:
    """One answer, streamed or not; the text does not depend on how tokens were grouped into deltas."""

    def __init__(self, request: ParsedRequest, meta: AnswerMeta) -> None:
        raise NotImplementedError

    def push(self, index: int, delta: Delta) -> Pushed:
        """Take a delta of choice ``index``. Deltas of a choice that is done are ignored.

        Raises RequestError when the delta reports an error (see error_of): nothing more can be pushed.
        """
        raise NotImplementedError

    @property
    def done(self) -> bool:
        """Whether every choice is complete."""
        raise NotImplementedError

    @property
    def finish_reasons(self) -> list[str]:
        """Of every choice, in order."""
        raise NotImplementedError

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices, up to and including the ones that ended them."""
        raise NotImplementedError

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from cached pages."""
        raise NotImplementedError

    @property
    def stats(self) -> list[SequenceStats]:
        """What the engine reported, for every choice it reported on."""
        raise NotImplementedError

    def finish(self, specproxy: dict[str, Any] | None = None) -> bytes:
        """Streaming: the last choice's finish chunk, the usage chunk if asked for, ``[DONE]``. Else the JSON body.

        ``specproxy`` goes into the body or the last chunk.
        """
        raise NotImplementedError
