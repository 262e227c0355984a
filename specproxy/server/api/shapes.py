"""How the two endpoints write a choice: the chat shape and the completion shape, behind one protocol."""

from __future__ import annotations

from typing import Protocol

from msgspec import UNSET, UnsetType

from specproxy.server.api.choice import Choice, Shown
from specproxy.server.api.envelope import (
    AnyChoice,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatMessage,
    CompletionChoice,
)
from specproxy.server.api.logprobs import ChatLogprobs, LegacyLogprobs, chat_logprobs, echo_logprobs, legacy_logprobs
from specproxy.server.api.parsed import ParsedRequest
from specproxy.tools.shapes import Additions, MessageParts, additions


class Shape(Protocol):
    """``chunk_object`` and ``whole_object``: the ``object`` of chunks and of whole answers."""

    chunk_object: str
    whole_object: str

    def opening(self, choice: Choice) -> AnyChoice | None:
        """What a choice's stream begins with, if anything."""
        ...

    def parts(self, choice: Choice, shown: Shown) -> list[AnyChoice]:
        """More of a choice, for a chunk each."""
        ...

    def end(self, choice: Choice) -> AnyChoice:
        """The finish reason, and nothing else."""
        ...

    def whole(self, choice: Choice, shown: Shown) -> AnyChoice:
        """A choice that is not streamed."""
        ...

    def prompt_token_ids(self) -> list[int] | UnsetType:
        """What the envelope says of the prompt."""
        ...


class ChatShape:
    """chat.completion and its chunks."""

    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, request: ParsedRequest) -> None:
        self._request = request
        self._with_logprobs = request.params.logprobs is not None
        self._calls = request.reading is not None and request.reading.tools is not None
        self._legacy = request.reading is not None and request.reading.legacy

    def opening(self, choice: Choice) -> AnyChoice:
        """The role, with empty content; with none yet where the message may only call."""
        return ChatChunkChoice(choice.index, ChatDelta("assistant", None if self._calls else ""))

    def parts(self, choice: Choice, shown: Shown) -> list[AnyChoice]:
        """More content, thoughts and calls. What is told of tokens stands beside the first."""
        if choice.reader is None:
            deltas = [ChatDelta(content=shown.text)]
        else:
            deltas = [_delta(added) for added in additions(shown.events, legacy=self._legacy)] or [ChatDelta()]
        first = ChatChunkChoice(
            choice.index,
            deltas[0],
            self._logprobs(shown),
            token_ids=shown.tokens if self._request.return_token_ids else UNSET,
        )
        return [first, *(ChatChunkChoice(choice.index, delta) for delta in deltas[1:])]

    def end(self, choice: Choice) -> AnyChoice:
        """An empty delta with the finish reason."""
        return ChatChunkChoice(
            choice.index,
            ChatDelta(),
            finish_reason=choice.finish_reason,
            stop_reason=_stop_reason(self._request, choice),
        )

    def whole(self, choice: Choice, shown: Shown) -> AnyChoice:
        """The message."""
        return ChatChoice(
            choice.index,
            ChatMessage(shown.text) if choice.reader is None else self._message(shown),
            self._logprobs(shown),
            choice.finish_reason,
            stop_reason=_stop_reason(self._request, choice),
            token_ids=shown.tokens if self._request.return_token_ids else UNSET,
        )

    def prompt_token_ids(self) -> list[int] | UnsetType:
        """There is one prompt, so its ids stand beside the choices."""
        return self._request.prompts[0].ids if self._request.return_token_ids else UNSET

    def _message(self, shown: Shown) -> ChatMessage:
        """What was read of an answer's text."""
        parts = MessageParts()
        parts.add(shown.events)
        return ChatMessage(
            parts.content,
            reasoning_content=UNSET if parts.reasoning_content is None else parts.reasoning_content,
            tool_calls=UNSET if self._legacy or not parts.tool_calls else parts.tool_calls,
            function_call=UNSET if not self._legacy or parts.function_call is None else parts.function_call,
        )

    def _logprobs(self, shown: Shown) -> ChatLogprobs | None:
        return chat_logprobs(self._request.context.tokenizer, shown.logprobs) if self._with_logprobs else None


class CompletionShape:
    """text_completion, whose chunks have the same form as the whole."""

    chunk_object = "text_completion"
    whole_object = "text_completion"

    def __init__(self, request: ParsedRequest) -> None:
        self._request = request
        self._with_logprobs = request.params.logprobs is not None

    def opening(self, choice: Choice) -> AnyChoice | None:
        """The prompt, where it is echoed or its ids are wanted."""
        if not self._request.echo and not self._request.return_token_ids:
            return None
        return CompletionChoice(
            choice.index,
            choice.prompt.text if self._request.echo else "",
            self._echoed(choice),
            prompt_token_ids=self._prompt_ids(choice),
        )

    def parts(self, choice: Choice, shown: Shown) -> list[AnyChoice]:
        """More text."""
        logprobs = self._logprobs(choice, shown)
        return [CompletionChoice(choice.index, shown.text, logprobs, token_ids=self._token_ids(shown))]

    def end(self, choice: Choice) -> AnyChoice:
        """Empty text with the finish reason."""
        return CompletionChoice(
            choice.index, "", finish_reason=choice.ending, stop_reason=_stop_reason(self._request, choice)
        )

    def whole(self, choice: Choice, shown: Shown) -> AnyChoice:
        """All the text, behind the prompt where that is echoed."""
        logprobs = self._logprobs(choice, shown)
        echoed = self._echoed(choice)
        return CompletionChoice(
            choice.index,
            choice.prompt.text + shown.text if self._request.echo else shown.text,
            echoed + logprobs if echoed is not None and logprobs is not None else logprobs,
            choice.ending,
            _stop_reason(self._request, choice),
            self._token_ids(shown),
            self._prompt_ids(choice),
        )

    def prompt_token_ids(self) -> list[int] | UnsetType:
        """Every choice has its own prompt's ids."""
        return UNSET

    def _logprobs(self, choice: Choice, shown: Shown) -> LegacyLogprobs | None:
        if not self._with_logprobs:
            return None
        start = len(choice.prompt.text) if self._request.echo else 0
        offsets = [start + offset for offset in shown.offsets]
        return legacy_logprobs(self._request.context.tokenizer, shown.logprobs, offsets)

    def _echoed(self, choice: Choice) -> LegacyLogprobs | None:
        if not self._with_logprobs or not self._request.echo:
            return None
        prompt = choice.prompt
        return echo_logprobs(self._request.context.tokenizer, prompt.ids, choice.prompt_logprobs, prompt.text)

    def _token_ids(self, shown: Shown) -> list[int] | UnsetType:
        return shown.tokens if self._request.return_token_ids else UNSET

    def _prompt_ids(self, choice: Choice) -> list[int] | UnsetType:
        return choice.prompt.ids if self._request.return_token_ids else UNSET


def shape_of(request: ParsedRequest) -> Shape:
    """The shape of the endpoint that the request came to."""
    return ChatShape(request) if request.endpoint == "chat" else CompletionShape(request)


def _delta(added: Additions) -> ChatDelta:
    return ChatDelta(
        content=added.content,
        reasoning_content=added.reasoning_content,
        tool_calls=added.tool_calls,
        function_call=added.function_call,
    )


def _stop_reason(request: ParsedRequest, choice: Choice) -> str | int | UnsetType:
    """The stop string or stop token that ended the answer; nothing for the model's own end."""
    own_end = choice.stop in request.context.tokenizer.eos_token_ids
    return UNSET if choice.stop is None or own_end else choice.stop
