"""What operators and load balancers ask: /health, /ready, /metrics; and the models that clients list."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from specproxy.server.api import model_list, model_object
from specproxy.server.gating.view import ready_details, show
from specproxy.server.passthrough import FORWARDING
from specproxy.server.state import STATE, State


async def health(request: web.Request) -> web.Response:
    """200 while this process is of use: a supervisor should restart it only when the engine was given up."""
    failed = request.app[STATE].backend.state == "failed"
    return _json({"status": "failed" if failed else "ok"}, 503 if failed else 200)


async def ready(request: web.Request) -> web.Response:
    """200 when a request would be worked on now, 503 otherwise; the body says why, and what is served."""
    state = request.app[STATE]
    status = _status(state)
    upstreams = request.app[FORWARDING].upstreams.status()
    parts = {**_engine(state), "upstreams": upstreams, "policy": ready_details(state.gate), "admin": state.admin}
    body = {"status": status, **parts}
    return _json(body, 200 if status == "ready" else 503)


async def metrics(request: web.Request) -> web.Response:
    """Prometheus' text format."""
    state = request.app[STATE]
    state.metrics.in_flight.set(state.admission.depth)
    show(state.gate, state.metrics)
    body = generate_latest(state.metrics.registry)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def models(request: web.Request) -> web.Response:
    """``GET /v1/models``."""
    served, foreign = request.app[STATE].need_served(), _foreign_models(request)
    body = model_list(served.context, served.created)
    if foreign:
        listed: dict[str, list[object]] = msgspec.json.decode(body)
        listed["data"] += foreign.values()
        body = msgspec.json.encode(listed)
    return web.Response(body=body, content_type="application/json")


async def model(request: web.Request) -> web.Response:
    """``GET /v1/models/{id}``; an id may have slashes."""
    served = request.app[STATE].need_served()
    name = request.match_info["name"]
    if (foreign := _foreign_models(request).get(name)) is not None:
        return _json(foreign, 200)
    return web.Response(body=model_object(served.context, name, served.created), content_type="application/json")


class _ForeignModel(Struct):
    """A name that upstreams know; what is behind it is theirs to say."""

    id: str
    created: int
    owned_by: str
    object: str = "model"


def _foreign_models(request: web.Request) -> dict[str, _ForeignModel]:
    """The names in the upstreams' tables that the engine does not serve."""
    served = request.app[STATE].need_served()
    found: dict[str, _ForeignModel] = {}
    for upstream in request.app[FORWARDING].upstreams.values():
        for name in upstream.config.models:
            if name not in served.context.names:
                found.setdefault(name, _ForeignModel(name, served.created, upstream.name))
    return found


def _status(state: State) -> str:
    if state.draining:
        return "draining"
    if state.backend.state == "ready" and state.served is None:
        return "loading"
    return state.backend.state


def _engine(state: State) -> dict[str, Any]:
    engine: dict[str, Any] = {"state": state.backend.state, "problem": state.backend.problem or None}
    hello = state.backend.hello
    if hello is None:
        return {"engine": engine, "exactness": None}
    engine |= {
        "pid": hello.pid,
        "model": hello.model.name,
        "max_model_len": hello.model.max_model_len,
        "max_sequences": hello.max_sequences,
        "load_s": round(hello.load_s, 3),
        "numerics": hello.numerics,
        "drafters": hello.drafters,
    }
    return {"engine": engine, "exactness": hello.numerics.exactness}


def _json(value: object, status: int) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
