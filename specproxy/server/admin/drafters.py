"""The admin API's calls about drafters. They do not wait for orders, nor orders for them: loading takes its time, and a
kill must not wait for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog
from aiohttp import web

from specproxy.config.schema import RESERVED_NAMES, DrafterConfig
from specproxy.errors import InvalidRequest, ModelLoadError, StaleWrite, TimedOut
from specproxy.server.admin.api import Call, read_json
from specproxy.server.admin.bodies import Loading, Unloading
from specproxy.server.admin.drafter_operator import DrafterOperator, Drafters, DrafterStatus
from specproxy.server.admin.layers import ACTOR, refusal

ANSWER_S = 600.0
"""How long a call waits for the engine. A change that takes longer goes on, and the list of drafters shows it."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")

T = TypeVar("T")


class DrafterCalls:
    """Asks ``operator``."""

    def __init__(self, operator: DrafterOperator) -> None:
        self._operator = operator
        self._running: set[asyncio.Task[Any]] = set()

    def calls(self) -> list[Call]:
        """Every call."""
        errors = (409, 412, 422, 428, 503, 504)
        return [
            Call("GET", "/drafters", "The drafters, and the routes that use them", self._list, Drafters),
            Call(
                "PUT", "/drafters/{name}", "Load a drafter, or other weights under a name that no route names",
                self._load, DrafterStatus, Loading, errors, versioned="where it is there already",
            ),
            Call(
                "DELETE", "/drafters/{name}", "Unload a drafter that no route names", self._unload, Drafters,
                Unloading, (404, *errors), versioned="always",
            ),
        ]  # fmt: skip

    async def settle(self) -> None:
        """Let go of changes under way: the engine ends too."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _list(self, request: web.Request) -> Drafters:
        return self._operator.listed()

    async def _load(self, request: web.Request) -> DrafterStatus:
        name, body, actor = _name(request), await read_json(request, Loading), request[ACTOR]
        config = DrafterConfig(type=body.type, path=body.path, max_k=body.max_k, options=body.options)
        etag = _etag(request)
        loading = self._operator.load(name, config, reason=body.reason, actor=actor, etag=etag)
        try:
            done = await self._to_the_end(loading, name)
        except StaleWrite:
            if etag is None:
                raise _unversioned() from None
            raise
        facts = {"drafter": name, "type": body.type, "path": body.path, "fingerprint": done.fingerprint}
        structlog.get_logger().info("admin order", order="load", **facts, reason=body.reason, actor=actor)
        return done

    async def _unload(self, request: web.Request) -> Drafters:
        name, body, actor, etag = _name(request), await read_json(request, Unloading), request[ACTOR], _etag(request)
        if etag is None:
            raise _unversioned()
        unloading = self._operator.unload(name, reason=body.reason, actor=actor, etag=etag)
        done = await self._to_the_end(unloading, name)
        structlog.get_logger().info("admin order", order="unload", drafter=name, reason=body.reason, actor=actor)
        return done

    async def _to_the_end(self, change: Coroutine[Any, Any, T], name: str) -> T:
        """What becomes of a change, which goes on also where nobody waits for it any more."""
        task = asyncio.ensure_future(change)
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.shield(task)
        except TimeoutError:
            raise TimedOut(
                f"the engine is still at drafter {name} after {ANSWER_S:g} s; the list shows the end"
            ) from None
        except ModelLoadError as refused:
            raise refusal(422, str(refused), "drafter_refused") from None

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()


def _name(request: web.Request) -> str:
    """The path's name. Raises InvalidRequest where no policy could refer to it."""
    name = request.match_info["name"]
    if not _NAME.match(name):
        raise InvalidRequest(f"{name[:80]!r}: expected a name of letters, digits, _ . and -, 64 at most", param="name")
    if name in RESERVED_NAMES:
        raise InvalidRequest(f'"{name}" is a word of the policy language; choose another name', param="name")
    return name


def _etag(request: web.Request) -> str | None:
    etag = request.headers.get("If-Match", "").strip()
    return None if etag in ("", "*") else etag


def _unversioned() -> Exception:
    return refusal(
        428, "If-Match is missing, and the drafter is there; expected its ETag, as GET …/drafters gives it", "version"
    )
