"""The ``usage`` object."""

from __future__ import annotations

from msgspec import Struct


class PromptDetails(Struct):
    """``cached_tokens``: prompt tokens whose pages were there already."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(Struct):
    """Of a prediction: how many of its tokens are in the answer, and how many are not; a function of the two texts.

    Rejected ones cost the client nothing: they are no part of ``completion_tokens``.
    """

    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    reasoning_tokens: int = 0
    audio_tokens: int = 0


class Usage(Struct):
    """Tokens of all prompts, each once, and of all choices, up to and including those that ended them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
