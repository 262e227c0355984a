"""The admin application, and its listener's life."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Mapping

import msgspec
import structlog
from aiohttp import web

from specproxy.config.keys import KeyRing, load_keys
from specproxy.config.schema import AdminConfig, KeysConfig
from specproxy.server.admin.api import ROOT, Api
from specproxy.server.admin.assets import add_page
from specproxy.server.admin.claim import url_of
from specproxy.server.admin.drafters import DrafterCalls
from specproxy.server.admin.events import Events
from specproxy.server.admin.guesses import Guesses
from specproxy.server.admin.layers import GUESSES, KEYS, NAMES, authorise, damage, protect, same_place
from specproxy.server.admin.openapi import document
from specproxy.server.admin.operator import Operator
from specproxy.server.app import listen
from specproxy.server.layers import disclose, faults, identify

EVENTS: web.AppKey[Events] = web.AppKey("events", Events)


def admin_keys(config: AdminConfig, env: Mapping[str, str]) -> KeyRing:
    """The operators' keys, of the variable that ``key_env`` names, comma-separated."""
    return load_keys(KeysConfig(env=config.key_env), env)


def build_admin_app(operator: Operator, keys: KeyRing, config: AdminConfig) -> web.Application:
    """The application. Without ``keys`` it answers over a Unix socket alone."""
    app = web.Application(middlewares=(identify, faults, damage, same_place, authorise), client_max_size=0)
    api, drafters, events = Api(operator), DrafterCalls(operator.drafters), Events(operator)
    app[KEYS], app[EVENTS], app[GUESSES] = keys, events, Guesses()
    app[NAMES] = frozenset(name.lower() for name in ("localhost", config.host, *config.names))
    app.on_response_prepare.append(disclose)
    app.on_response_prepare.append(protect)
    calls = [*api.calls(), *drafters.calls()]
    for call in calls:
        app.router.add_route(call.method, ROOT + call.path, call.respond)
    openapi = msgspec.json.encode(document(calls))

    async def describe(request: web.Request) -> web.Response:
        return web.Response(body=openapi, content_type="application/json")

    async def end_streams(app: web.Application) -> None:
        events.close()

    async def settle(app: web.Application) -> None:
        await drafters.settle()
        await api.settle()

    app.router.add_get(f"{ROOT}/openapi.json", describe)
    app.router.add_get(f"{ROOT}/events", events.answer)
    add_page(app)
    app.on_shutdown.append(end_streams)
    app.on_cleanup.append(settle)
    return app


@contextlib.asynccontextmanager
async def serving(
    listener: socket.socket, operator: Operator, keys: KeyRing, config: AdminConfig
) -> AsyncIterator[web.AppRunner]:
    """Answer operators on ``listener``, a claimed socket, inside of the context; orders that were begun end first."""
    runner = await listen(build_admin_app(operator, keys, config), listener)
    structlog.get_logger().info("operators are answered", url=url_of(listener))
    try:
        yield runner
    finally:
        await runner.cleanup()
