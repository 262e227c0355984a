"""The aiohttp application: routes, layers, and the options without which aiohttp is wrong for this work."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from aiohttp import web

from specproxy.server import status
from specproxy.server.endpoint import chat, completions
from specproxy.server.launch import BACKLOG
from specproxy.server.layers import ONION, disclose
from specproxy.server.passthrough import FORWARDING, Forwarding, other
from specproxy.server.state import STATE, State

_LINGER_S = 3.0
"""How long the rest of a refused body is read and thrown away, so that the client gets to read the refusal."""

_KEEP_ALIVE_S = 75.0

OWN_PATHS = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/models": "GET,HEAD",
    "/v1/models/{name:.+}": "GET,HEAD",
}
"""What is answered here, and how it is asked; the rest of /v1 is the upstreams'."""


def build_app(state: State, forwarding: Forwarding) -> web.Application:
    """The application around ``state``, and around the upstreams of ``forwarding``. Bodies are read and bounded by
    ``body``, so aiohttp's own limit is off."""
    app = web.Application(middlewares=ONION, client_max_size=0)
    app[STATE], app[FORWARDING] = state, forwarding
    app.on_response_prepare.append(disclose)
    app.router.add_post("/v1/chat/completions", chat().answer)
    app.router.add_post("/v1/completions", completions().answer)
    app.router.add_get("/v1/models", status.models)
    app.router.add_get("/v1/models/{name:.+}", status.model)
    for path, methods in OWN_PATHS.items():
        app.router.add_route("*", path, _wrong_method(methods))
    app.router.add_route("*", "/v1/{rest:.*}", other)
    app.router.add_get("/health", status.health)
    app.router.add_get("/ready", status.ready)
    app.router.add_get("/metrics", status.metrics)
    return app


def _wrong_method(allowed: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """What handles one of our own paths that is asked otherwise than it takes."""

    async def refuse(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, allowed.split(","))

    return refuse


async def listen(app: web.Application, listener: socket.socket, shutdown_s: float = 1.0) -> web.AppRunner:
    """Serve ``app`` on a bound socket. A handler is cancelled when its client goes away: aiohttp's default lets it
    generate for nobody."""
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=_KEEP_ALIVE_S,
        lingering_time=_LINGER_S,
        shutdown_timeout=shutdown_s,
    )
    await runner.setup()
    await web.SockSite(runner, listener, backlog=BACKLOG).start()
    return runner
