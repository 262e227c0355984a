"""The body of the completion endpoint."""

from __future__ import annotations

from specproxy.server.api.context import ApiContext
from specproxy.server.api.parsed import ParsedRequest


def parse_completion(body: bytes, context: ApiContext) -> ParsedRequest:
    """Validate and tokenise a body. Pure CPU work: run it in a thread for large bodies.

    Raises InvalidRequest naming the field, ContextTooLong, ModelNotFound.
    """
    raise NotImplementedError
