"""One choice in the making: its text so far, what of it may be shown, and how it ended."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from specproxy.alignment import Alignment
from specproxy.errors import EngineFailed
from specproxy.server.api.errors import error_of
from specproxy.server.api.parsed import Prompt
from specproxy.server.api.tools import AnswerReader
from specproxy.structured.schemas import AnswerSchema, Verdict
from specproxy.text.assembler import Assembler, Ending, Piece
from specproxy.tools.events import Event, Malformed, Text
from specproxy.vocabulary import Delta, SequenceStats, TokenLogprob


@dataclass(slots=True)
class Shown:
    """What one chunk, or a whole answer, shows: text in ``parts``, or ``events`` where calls and thoughts are told
    from it. ``tokens``, ``logprobs`` and ``offsets`` run parallel."""

    parts: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All parts, none of which is empty."""
        return "".join(self.parts)


@dataclass(slots=True)
class Choice:
    """``pending`` has grown since it was last taken: tokens wait there until their text may be shown.

    ``stop``: the stop string, or stop token's id, that ended it. ``stats``: the engine's latest counts. ``alignment``:
    where the answer stands in the client's prediction, if there is one. ``schema``: what the text has to be;
    ``text``: all of it, kept only then. ``reader``: tells calls and thoughts from it, where it may have them.
    """

    index: int
    prompt: Prompt
    assembler: Assembler
    wants_logprobs: bool
    alignment: Alignment | None = None
    schema: AnswerSchema | None = None
    reader: AnswerReader | None = None
    text: list[str] = field(default_factory=list)
    opened: bool = False
    ending: Ending | None = None
    stop: str | int | None = None
    stats: SequenceStats | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    pending: Shown = field(default_factory=Shown)

    def push(self, delta: Delta) -> Piece:
        """Take a delta; returns what it added. Once ended, only the engine's counts are taken.

        Raises RequestError when the delta reports an error.
        """
        self.stats = delta.stats or self.stats
        if self.ending is not None:
            return Piece()
        error = error_of(delta)
        if error is not None:
            raise error
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        ending: Ending | None = None
        if delta.finish_reason is not None:
            ending = "length" if delta.finish_reason == "length" else "stop"
        piece = self.assembler.push(delta.tokens, ending, delta.stop_token)
        if self.reader is not None:
            self._read(self.reader, piece)
        elif piece.text:
            self.pending.parts.append(piece.text)
            if self.schema is not None:
                self.text.append(piece.text)
        self.pending.tokens += delta.tokens[: piece.tokens]
        if self.alignment is not None:
            for token in delta.tokens[: piece.tokens]:
                self.alignment.feed(token)
        self.pending.offsets += piece.offsets
        if self.wants_logprobs:
            self._keep_logprobs(delta, piece.tokens)
        self.ending, self.stop = piece.ending, piece.stop
        return piece

    def take(self) -> Shown:
        """Everything pending, which is then no longer pending."""
        shown, self.pending = self.pending, Shown()
        return shown

    @property
    def finish_reason(self) -> str | None:
        """What the answer says of its end, once it has one."""
        return self.ending if self.reader is None or self.ending is None else self.reader.finish_reason(self.ending)

    def verdict(self, eos: Collection[int]) -> Verdict | None:
        """Whether a choice that has ended has its schema; ``None`` where it needs none, or calls instead.
        ``eos``: the model's own ends: stop strings and other stop tokens cut an answer short as a limit does."""
        if self.schema is None or self.ending is None or (self.reader is not None and self.reader.calls):
            return None
        own_end = self.ending == "stop" and (self.stop is None or self.stop in eos)
        return self.schema.judge("".join(self.text), complete=own_end)

    def _read(self, reader: AnswerReader, piece: Piece) -> None:
        events = reader.push(piece.text, ended=piece.ending is not None)
        self.pending.events += events
        if self.schema is not None:
            self.text += [event.text for event in events if isinstance(event, Text | Malformed)]

    def _keep_logprobs(self, delta: Delta, num: int) -> None:
        entries = delta.logprobs or []
        if len(entries) < num:
            raise EngineFailed(f"the engine sent {len(entries)} logprobs for {len(delta.tokens)} tokens")
        self.pending.logprobs += entries[:num]
