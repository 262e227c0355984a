"""The JSON objects that answers are made of, streamed or whole."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from specproxy.server.api.logprobs import ChatLogprobs, LegacyLogprobs
from specproxy.server.api.usage import Usage
from specproxy.tools.shapes import FunctionCall, FunctionDelta, ToolCall, ToolCallDelta


class ChatDelta(Struct):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class ChatMessage(Struct):
    """The whole message. ``content`` is ``null`` where it only calls."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class ChatChunkChoice(Struct):
    """A choice in a chunk. ``stop_reason`` and ``token_ids`` as vLLM has them."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChoice(Struct):
    """A choice of a whole answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(Struct):
    """A choice of a completion, in a chunk or whole."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


AnyChoice = ChatChunkChoice | ChatChoice | CompletionChoice


class Envelope(Struct):
    """What is around the choices. ``usage``: absent, ``null`` in chunks of a stream that ends with it, or there."""

    id: str
    object: str
    created: int
    model: str
    choices: list[AnyChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    service_tier: str | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    specproxy: dict[str, Any] | UnsetType = UNSET
