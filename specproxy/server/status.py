"""What operators and load balancers ask: /health, /ready, /metrics; and the models that clients list."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from specproxy.server.api import model_list, model_object
from specproxy.server.gating.view import ready_details, show
from specproxy.server.state import STATE, State


async def health(request: web.Request) -> web.Response:
    """200 while this process is of use: a supervisor should restart it only when the engine was given up."""
    failed = request.app[STATE].backend.state == "failed"
    return _json({"status": "failed" if failed else "ok"}, 503 if failed else 200)


async def ready(request: web.Request) -> web.Response:
    """200 when a request would be worked on now, 503 otherwise; the body says why, and what is served."""
    state = request.app[STATE]
    status = _status(state)
    body = {"status": status, **_engine(state), "policy": ready_details(state.gate), "admin": state.admin}
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
    served = request.app[STATE].need_served()
    return web.Response(body=model_list(served.context, served.created), content_type="application/json")


async def model(request: web.Request) -> web.Response:
    """``GET /v1/models/{id}``; an id may have slashes."""
    served = request.app[STATE].need_served()
    name = request.match_info["name"]
    return web.Response(body=model_object(served.context, name, served.created), content_type="application/json")


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
