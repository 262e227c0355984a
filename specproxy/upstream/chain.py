"""Backends in order: the first that answers does; the next is asked only while nothing has gone to the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from specproxy.errors import ContextTooLong, EngineFailed, EngineUnavailable, ModelNotFound, QueueFull, RequestError
from specproxy.upstream.errors import UpstreamError

T = TypeVar("T")

_FALLS_ON = (QueueFull, EngineFailed, EngineUnavailable, ContextTooLong, ModelNotFound, UpstreamError)
"""What another backend may do better. A malformed request, a limit of the route or its time are not among them."""


@dataclass(frozen=True)
class Link(Generic[T]):
    """A backend of the chain. ``answer`` raises a RequestError only while nothing has gone to the client; what it is
    given says whether another backend stands behind this one, and which failed before it."""

    name: str
    answer: Callable[[bool, Sequence[tuple[str, RequestError]]], Awaitable[T]]


async def first_answer(links: Sequence[Link[T]], on_fallback: Callable[[str, str, RequestError], None]) -> T:
    """The answer of the first backend that has one. ``on_fallback`` hears (from, to, why).

    Raises the last backend's error where none has one, with what the others said before it.
    """
    failed: list[tuple[str, RequestError]] = []
    for place, link in enumerate(links):
        following = links[place + 1].name if place + 1 < len(links) else None
        try:
            return await link.answer(following is not None, failed)
        except _FALLS_ON as error:
            if following is None:
                if failed:
                    error.message += "; before it, " + "; ".join(f"{name}: {why.message}" for name, why in failed)
                raise
            failed.append((link.name, error))
            on_fallback(link.name, following, error)
    raise ValueError("a chain has one backend at least")
