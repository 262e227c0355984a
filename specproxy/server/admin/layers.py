"""The layers around the admin API: who may call it, from where, and what browsers are told about its answers.

Deny by default: everything but the dashboard's own files needs a key, or a Unix socket that only this user may open.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from urllib.parse import urlsplit

from aiohttp import web

from specproxy.config.keys import KeyRing
from specproxy.errors import QueueFull, RequestError, StoreDamaged, Unauthenticated
from specproxy.server.admin.assets import PUBLIC
from specproxy.server.admin.guesses import MOST_WRONG, SPAN_S, Guesses
from specproxy.server.layers import Handler

KEYS: web.AppKey[KeyRing] = web.AppKey("keys", KeyRing)
GUESSES: web.AppKey[Guesses] = web.AppKey("guesses", Guesses)
NAMES: web.AppKey[frozenset[str]] = web.AppKey("names", frozenset)
ACTOR: web.RequestKey[str] = web.RequestKey("actor", str)
"""Id of the key, or of the system's user; never what a client says."""

_CREDENTIALS = struct.Struct("3i")
"""Linux' ``struct ucred``: process, user, group."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def refusal(status: int, message: str, code: str) -> RequestError:
    """An error with a status that only this API has."""
    error = RequestError(message, code=code)
    error.status, error.type, error.retry = status, "invalid_request_error", False
    return error


async def protect(request: web.Request, response: web.StreamResponse) -> None:
    """Browsers keep nothing, run nothing but our files, and show us in no frame. An ``on_response_prepare`` signal."""
    response.headers.update(_HEADERS)


@web.middleware
async def damage(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A damaged store is said to the operator: whoever asks here is who can mend it."""
    try:
        return await handler(request)
    except StoreDamaged as error:
        raise RequestError(str(error), code="store_damaged") from None


@web.middleware
async def same_place(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A page of another origin, or a name that was made to point here, gets nothing, whatever key it may have."""
    if not _over_unix(request) and not _known(request.host, request.app[NAMES]):
        raise refusal(
            421, f'this server is not called "{request.host}"; add the name to admin.names, or use the address', "host"
        )
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
        raise refusal(403, f"a page of {origin} may not ask here", "foreign_origin")
    return await handler(request)


@web.middleware
async def authorise(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The key's id goes on as the actor; without keys, a Unix socket's user."""
    if request.path in PUBLIC and request.method in ("GET", "HEAD"):
        return await handler(request)
    keys = request.app[KEYS]
    if len(keys):
        request[ACTOR] = _key_id(request, keys)
    elif _over_unix(request):
        request[ACTOR] = _peer(request)
    else:
        raise Unauthenticated("no admin key is set on this server, so nobody may ask over the network")
    return await handler(request)


def _key_id(request: web.Request, keys: KeyRing) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("no admin key was given; send it as: Authorization: Bearer KEY")
    guesses, remote = request.app[GUESSES], request.remote
    if wait_s := guesses.wait_s(remote):
        raise QueueFull(
            f"{MOST_WRONG} wrong admin keys came from here within {SPAN_S:g} s; wait, then send the right one",
            code="too_many_wrong_keys",
            retry_after_s=wait_s,
        )
    key_id = keys.lookup(token.strip())
    if key_id is None:
        guesses.wrong(remote)
        raise Unauthenticated("the admin key is not known here; an API key of the public port is no admin key")
    return key_id


def _over_unix(request: web.Request) -> bool:
    connection = request.get_extra_info("socket")
    return connection is not None and connection.family == socket.AF_UNIX


def _peer(request: web.Request) -> str:
    """The user at the other end of a Unix socket, where the system tells."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return "socket"
    raw = request.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    return f"uid-{_CREDENTIALS.unpack(raw)[1]}"


def _known(host: str, names: frozenset[str]) -> bool:
    """Whether ``host``, port and all, is a name of ours. An address cannot be made to point elsewhere."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return False
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
