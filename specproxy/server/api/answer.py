"""An answer in the making: deltas of every choice go in, bytes for the client come out.

Streamed and whole answers take the same steps; a stream shows what is ready after each delta, a whole answer shows
everything at the end. A stream is, per choice: an opening chunk (the role, or the echoed prompt), chunks of text, one
chunk with the finish reason; then, if asked for, one chunk with the usage and no choices; then ``[DONE]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from specproxy.alignment import Alignment
from specproxy.server.api.choice import Choice
from specproxy.server.api.envelope import AnyChoice, Envelope
from specproxy.server.api.parsed import ParsedRequest
from specproxy.server.api.shapes import shape_of
from specproxy.server.api.tools import CallVerdict
from specproxy.server.api.usage import CompletionDetails, PromptDetails, Usage
from specproxy.structured.schemas import Verdict
from specproxy.text.assembler import Assembler, TextOptions
from specproxy.text.stops import StopString
from specproxy.vocabulary import Delta, SequenceStats

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class AnswerMeta:
    """What every chunk repeats. ``created``: Unix seconds. ``system_fingerprint`` is constant for a loaded engine."""

    id: str
    created: int
    system_fingerprint: str


@dataclass(frozen=True, slots=True)
class Pushed:
    """What one delta led to. ``data``: SSE bytes to write now, may be empty (always, when not streaming).

    ``done``: the choice is complete; if the delta had no finish reason, its sequence still runs and must be ended
    (a stop string ends an answer before the engine knows). ``tokens``: how many of the delta's tokens count;
    ``text``: what they added to the answer.
    """

    data: bytes
    done: bool
    tokens: int
    text: str


class Answer:
    """One answer, streamed or not; its text does not depend on how tokens were grouped into deltas."""

    def __init__(self, request: ParsedRequest, meta: AnswerMeta) -> None:
        self._request = request
        self._meta = meta
        self._shape = shape_of(request)
        self._encoder = msgspec.json.Encoder()
        self._last = 0
        options = TextOptions(
            tuple(StopString.compile(stop) for stop in request.stop),
            request.include_stop,
            request.skip_special_tokens,
            request.params.min_tokens,
            frozenset() if request.reading is None else request.reading.kept,
        )
        self._choices = [
            Choice(
                index=row * request.n + i,
                prompt=prompt,
                assembler=Assembler(request.context.tokenizer, prompt.ids, options),
                wants_logprobs=request.params.logprobs is not None,
                alignment=Alignment(request.prediction) if request.prediction else None,
                schema=request.schema,
                reader=None if request.reading is None else request.reading.reader(meta.id, row * request.n + i),
            )
            for row, prompt in enumerate(request.prompts)
            for i in range(request.n)
        ]
        self._running = len(self._choices)

    def push(self, index: int, delta: Delta) -> Pushed:
        """Take a delta of choice ``index``. Of a choice that is done only the engine's counts are taken.

        Raises RequestError when the delta reports an error (see error_of): nothing more can be pushed.
        """
        choice = self._choices[index]
        running = choice.ending is None
        piece = choice.push(delta)
        if running and choice.ending is not None:
            self._running -= 1
        data = self._stream(choice) if running and self._request.stream else b""
        return Pushed(data, choice.ending is not None, piece.tokens, piece.text)

    @property
    def done(self) -> bool:
        """Whether every choice is complete."""
        return self._running == 0

    @property
    def finish_reasons(self) -> list[str]:
        """Of every choice that is complete, in order."""
        return [choice.finish_reason for choice in self._choices if choice.finish_reason is not None]

    @property
    def verdicts(self) -> list[Verdict]:
        """Of every choice that is complete and had to have a schema, whether it has."""
        eos = self._request.context.tokenizer.eos_token_ids
        verdicts = [choice.verdict(eos) for choice in self._choices]
        return [verdict for verdict in verdicts if verdict is not None]

    @property
    def call_verdicts(self) -> list[CallVerdict]:
        """Of every call that was made or looked like one, how it was written."""
        return [verdict for choice in self._choices if choice.reader is not None for verdict in choice.reader.verdicts]

    @property
    def call_faults(self) -> list[str]:
        """What was wrong with calls that were not well formed."""
        return [fault for choice in self._choices if choice.reader is not None for fault in choice.reader.faults]

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices, up to and including the ones that ended them."""
        return sum(choice.assembler.num_tokens for choice in self._choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from cached pages; of several choices of a prompt the least fortunate counts."""
        n = self._request.n
        rows = [self._choices[start : start + n] for start in range(0, len(self._choices), n)]
        return sum(min((c.stats.cached_tokens for c in row if c.stats is not None), default=0) for row in rows)

    @property
    def stats(self) -> list[SequenceStats]:
        """What the engine reported, for every choice it reported on."""
        return [choice.stats for choice in self._choices if choice.stats is not None]

    def usage(self) -> Usage:
        """Counts so far."""
        prompt, completion = self._request.prompt_tokens, self.completion_tokens
        aligned = [choice.alignment for choice in self._choices if choice.alignment is not None]
        return Usage(
            prompt,
            completion,
            prompt + completion,
            PromptDetails(self.cached_tokens),
            CompletionDetails(sum(each.accepted for each in aligned), sum(each.rejected for each in aligned)),
        )

    def finish(self, specproxy: dict[str, Any] | None = None) -> bytes:
        """Streaming: the last choice's finish chunk, the usage chunk if asked for, ``[DONE]``. Else the JSON body.

        ``specproxy`` goes into the body or the last chunk. Call it once; raises RuntimeError unless ``done``.
        """
        if not self.done:
            raise RuntimeError(f"finish() with {self._running} choices still running")
        extra = UNSET if specproxy is None else specproxy
        if not self._request.stream:
            return self._whole(extra)
        last = self._choices[self._last]
        if not self._request.include_usage:
            return self._event([self._shape.end(last)], specproxy=extra) + DONE
        usage = self._event([], usage=self.usage(), specproxy=extra)
        return self._event([self._shape.end(last)]) + usage + DONE

    def _stream(self, choice: Choice) -> bytes:
        """Chunks that a delta made ready. The finish chunk of the last choice to end waits for ``finish``."""
        events = []
        if not choice.opened:
            choice.opened = True
            opening = self._shape.opening(choice)
            if opening is not None:
                events.append(self._event([opening], prompt_token_ids=self._shape.prompt_token_ids()))
        ended = choice.ending is not None
        pending = choice.pending
        if pending.parts or pending.events or (ended and pending.tokens and self._shows_tokens):
            events += [self._event([part]) for part in self._shape.parts(choice, choice.take())]
        if ended:
            if self._running:
                events.append(self._event([self._shape.end(choice)]))
            else:
                self._last = choice.index
        return b"".join(events)

    @property
    def _shows_tokens(self) -> bool:
        """Whether a token without text has something to show all the same."""
        return self._request.params.logprobs is not None or self._request.return_token_ids

    def _whole(self, specproxy: dict[str, Any] | UnsetType) -> bytes:
        request = self._request
        return self._encoder.encode(
            self._envelope(
                self._shape.whole_object,
                [self._shape.whole(choice, choice.take()) for choice in self._choices],
                usage=self.usage(),
                service_tier=UNSET if request.service_tier is None else request.service_tier,
                metadata=UNSET if request.metadata is None else request.metadata,
                prompt_token_ids=self._shape.prompt_token_ids(),
                specproxy=specproxy,
            )
        )

    def _event(self, choices: list[AnyChoice], **more: Any) -> bytes:
        """One chunk as a server-sent event."""
        if "usage" not in more:
            if self._request.continuous_usage:
                more["usage"] = self.usage()
            elif self._request.include_usage:
                more["usage"] = None
        return b"data: " + self._encoder.encode(self._envelope(self._shape.chunk_object, choices, **more)) + b"\n\n"

    def _envelope(self, kind: str, choices: list[AnyChoice], **more: Any) -> Envelope:
        meta = self._meta
        return Envelope(meta.id, kind, meta.created, self._request.model, choices, meta.system_fingerprint, **more)
