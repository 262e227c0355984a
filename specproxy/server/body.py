"""Reading a request's body: bounded in size and time, and refused before it is read where its length is announced."""

from __future__ import annotations

import asyncio

from aiohttp import web

from specproxy.errors import BodyTooLarge, InvalidRequest, RequestError


async def read_body(request: web.Request, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body, decompressed. Raises BodyTooLarge, InvalidRequest for a broken one, and a RequestError with
    status 408 when it does not arrive in time."""
    if request.content_length is not None and request.content_length > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(request, max_bytes)
    except TimeoutError:
        late = RequestError(f"the body did not arrive within {timeout_s:g} s", code="body_timeout")
        late.status, late.type = 408, InvalidRequest.type
        raise late from None
    except web.RequestPayloadError as error:
        raise InvalidRequest(f"the body is broken: {error}") from None


async def _read(request: web.Request, max_bytes: int) -> bytes:
    chunks = bytearray()
    while chunk := await request.content.readany():
        chunks += chunk
        if len(chunks) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(chunks)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than the {max_bytes // 2**20} MiB that this server takes")
