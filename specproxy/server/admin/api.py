"""The admin API's calls: each reads its request, asks the operator and answers with a value.

Orders are carried out one after the other, and to the end, also where the client goes away meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import msgspec
import structlog
from aiohttp import web
from msgspec import Struct

from specproxy.bundle import AuditBundle
from specproxy.errors import InvalidRequest
from specproxy.gate.orders import Order
from specproxy.policy.explain import Explanation
from specproxy.policy.plan import Plan
from specproxy.server.admin.bodies import Asked, Files, Ordered, Switched, read
from specproxy.server.admin.drafter_operator import DrafterStatus
from specproxy.server.admin.layers import ACTOR, refusal
from specproxy.server.admin.operator import Log, Operator, RevisionInfo, Revisions, Status, Switch, Validation
from specproxy.server.body import read_body

ROOT = "/admin/v1"
MAX_BODY_BYTES = 4 * 2**20
"""Policy files are text that people write; explained requests are as large at most as people read."""

BODY_TIMEOUT_S = 10.0
MAX_LOG = 1000
"""Entries of the audit log in one answer."""

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One call of the API. ``takes``: the body's type; ``answer``: what comes back; ``errors``: the statuses of
    refusals beside those that every call has; ``query``: parameter → what it is, all whole numbers; ``versioned``:
    when If-Match is needed; empty: never."""

    method: str
    path: str
    summary: str
    handle: Callable[[web.Request], Awaitable[Struct]]
    answer: type[Struct]
    takes: type[Struct] | None = None
    errors: tuple[int, ...] = ()
    query: tuple[tuple[str, str], ...] = ()
    versioned: Literal["", "always", "where it is there already"] = ""

    async def respond(self, request: web.Request) -> web.Response:
        """The answer as JSON, with the ETag of what it is about, where that has one."""
        value = await self.handle(request)
        response = web.Response(body=msgspec.json.encode(value), content_type="application/json")
        if isinstance(value, RevisionInfo | DrafterStatus):
            response.headers["ETag"] = value.etag
        return response


class Api:
    """Asks ``operator``."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._one_order = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    def calls(self) -> list[Call]:
        """Every call that answers with a value."""
        after = ("after", "Entries with a number above this one; default 0.")
        limit = ("limit", f"At most so many entries; default {MAX_LOG}.")
        reads = [
            Call("GET", "/status", "What serves and what is on its way", self._status, Status),
            Call(
                "GET", "/routes/{route}/revisions", "A route's revisions, oldest first", self._revisions, Revisions,
                errors=(404,),
            ),
            Call("GET", "/log", "The audit log, oldest first", self._log, Log, errors=(400,), query=(after, limit)),
            Call(
                "GET", "/bundles/{id}", "A hard mismatch, for `specproxy audit`", self._bundle, AuditBundle,
                errors=(404,),
            ),
        ]  # fmt: skip
        asks = [
            Call("POST", "/validate", "Whether policy files would be a valid set", self._validate, Validation, Files),
            Call("POST", "/explain", "What is decided about a request, and why", self._explain, Explanation, Asked),
            Call("POST", "/plan", "Which of the last requests policy files would move", self._plan, Plan, Files),
        ]
        orders = [
            Call(
                "POST", f"/routes/{{route}}/{order}", f"{order.capitalize()} a revision", self._ordering(order),
                RevisionInfo, Ordered, errors=(404, 409, 412, 428), versioned="always",
            )
            for order in get_args(Order)
        ]  # fmt: skip
        switches = [
            Call("POST", "/kill", "Speculation off at the next step", self._kill, Switch, Switched, (404,)),
            Call("DELETE", "/kill", "Speculation on again", self._lift, Switch, Switched, (404, 409)),
        ]
        return [*reads, *asks, *orders, *switches]

    async def settle(self) -> None:
        """Until every order that was begun has ended."""
        if self._running:
            await asyncio.wait(self._running)

    async def _status(self, request: web.Request) -> Status:
        return await self._operator.status()

    async def _revisions(self, request: web.Request) -> Revisions:
        return await self._operator.revisions(request.match_info["route"])

    async def _log(self, request: web.Request) -> Log:
        after, limit = number(request, "after", 0, 0), number(request, "limit", MAX_LOG, 1, MAX_LOG)
        return await self._operator.log(after, limit)

    async def _bundle(self, request: web.Request) -> AuditBundle:
        return await self._operator.bundle(request.match_info["id"])

    async def _validate(self, request: web.Request) -> Validation:
        return await self._operator.validate((await read_json(request, Files)).files)

    async def _explain(self, request: web.Request) -> Explanation:
        return await self._operator.explain((await read_json(request, Asked)).request)

    async def _plan(self, request: web.Request) -> Plan:
        return await self._operator.plan((await read_json(request, Files)).files)

    def _ordering(self, order: Order) -> Callable[[web.Request], Awaitable[RevisionInfo]]:
        async def give(request: web.Request) -> RevisionInfo:
            etag = request.headers.get("If-Match", "").strip()
            if etag in ("", "*"):
                raise refusal(
                    428,
                    "If-Match is missing; expected the ETag of the revision, as GET …/revisions gives it",
                    "version",
                )
            body = await read_json(request, Ordered)
            route, actor = request.match_info["route"], request[ACTOR]
            if body.force and order != "promote":
                raise InvalidRequest("force is for promote alone", param="force")
            call = self._operator.order(
                route, order, body.revision, reason=body.reason, actor=actor, etag=etag, force=body.force
            )
            done = await self._to_the_end(call)
            _say(order, route=route, revision=body.revision, phase=done.phase, reason=body.reason, actor=actor)
            return done

        return give

    async def _kill(self, request: web.Request) -> Switch:
        body, actor = await read_json(request, Switched), request[ACTOR]
        done = await self._to_the_end(self._operator.kill(body.route, reason=body.reason, actor=actor))
        _say("kill", route=body.route, reason=body.reason, actor=actor)
        return done

    async def _lift(self, request: web.Request) -> Switch:
        body, actor = await read_json(request, Switched), request[ACTOR]
        done = await self._to_the_end(self._operator.lift(body.route, reason=body.reason, actor=actor))
        _say("lift", route=body.route, reason=body.reason, actor=actor)
        return done

    async def _to_the_end(self, call: Coroutine[Any, Any, T]) -> T:
        async def alone() -> T:
            async with self._one_order:
                return await call

        task = asyncio.ensure_future(alone())
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        # Its client may have gone away; whoever is still there gets the error from the shield.
        if not task.cancelled():
            task.exception()


def number(request: web.Request, name: str, default: int, least: int, most: int = 2**63 - 1) -> int:
    """A whole number of the query. Raises InvalidRequest."""
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise InvalidRequest(f"{name}: expected a whole number from {least} to {most}, got {text[:40]}", param=name)
    return int(text)


async def read_json(request: web.Request, kind: type[T]) -> T:
    """The request's body. Raises InvalidRequest, BodyTooLarge, and a 415 for what is no JSON."""
    if request.content_type != "application/json":
        raise refusal(415, "expected a JSON body with content-type: application/json", "unsupported_media_type")
    return read(await read_body(request, MAX_BODY_BYTES, BODY_TIMEOUT_S), kind)


def _say(order: str, **facts: str | None) -> None:
    structlog.get_logger().info("admin order", order=order, **facts)
