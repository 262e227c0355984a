"""A client of a server's admin API, over TCP or a Unix socket.

Reads are plain GETs. A write names the version that it was made for (``If-Match`` with the ETag that the list of
revisions gave), so that it fails where somebody else was faster.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import Struct

from specproxy.config.schema import AdminConfig
from specproxy.errors import AdminRefused, ConfigError
from specproxy.policy.plan import Plan

UNIX = "unix:"
"""Before the path of a socket, in place of a URL."""

TIMEOUT_S = 30.0
"""Longest that an answer may take: a plan over many requests is the slowest."""

LOAD_S = 660.0
"""Longest that loading a drafter may take: more than the server waits for its engine."""

Order = Literal["promote", "rollback", "pause", "resume"]
T = TypeVar("T")


class RevisionInfo(Struct, frozen=True):
    """A revision of a route as the API lists it: 64 hex digits, its phase, and the ETag of its state."""

    revision: str
    phase: str
    etag: str


class _Revisions(Struct):
    revisions: list[RevisionInfo]


class AdminClient:
    """Asks one server; an asynchronous context manager. ``url``: ``http://host:port``, or ``unix:/path/of/socket``,
    where ``key`` may be empty.

    Every call raises AdminRefused where the server refuses, with its words, or where nothing answers as the API does.
    """

    def __init__(self, url: str, key: str) -> None:
        self._where = url
        self._socket = url.removeprefix(UNIX) if url.startswith(UNIX) else None
        self._base = "http://admin" if self._socket is not None else url.rstrip("/")
        self._key = key
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def from_config(cls, config: AdminConfig, env: Mapping[str, str] = os.environ, url: str | None = None) -> Self:
        """The server of a start configuration, or the one at ``url``. The key is the first one in the variable that
        ``admin.key_env`` names. Raises ConfigError where there is none; a Unix socket may go without."""
        key = env.get(config.key_env, "").partition(",")[0].strip()
        if url is None:
            host = f"[{config.host}]" if ":" in config.host else config.host
            url = f"{UNIX}{config.socket}" if config.socket else f"http://{host}:{config.port}"
        if not key and not url.startswith(UNIX):
            raise ConfigError(f"{config.key_env} is not set; expected the admin API's key there, as the server has it")
        return cls(url, key)

    async def __aenter__(self) -> Self:
        connector = aiohttp.UnixConnector(self._socket) if self._socket is not None else aiohttp.TCPConnector()
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"authorization": f"Bearer {self._key}"} if self._key else {},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def status(self) -> dict[str, Any]:
        """What serves and what is on its way."""
        return await self._ask("GET", "status", dict[str, Any])

    async def revisions(self, route: str) -> list[RevisionInfo]:
        """The revisions of a route, oldest first."""
        return (await self._ask("GET", f"routes/{quote(route, safe='')}/revisions", _Revisions)).revisions

    async def log(self, after: int = 0) -> dict[str, Any]:
        """Entries of the audit log with a ``seq`` above ``after``."""
        return await self._ask("GET", f"log?after={after}", dict[str, Any])

    async def validate(self, files: Mapping[str, str]) -> dict[str, Any]:
        """Whether these policy files (name → text) would be a valid set there."""
        return await self._ask("POST", "validate", dict[str, Any], {"files": files})

    async def explain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What the server's set decides about a request: a body, or an envelope."""
        return await self._ask("POST", "explain", dict[str, Any], {"request": request})

    async def plan(self, files: Mapping[str, str]) -> Plan:
        """Which of the server's last requests these policy files (name → text) would treat otherwise."""
        return await self._ask("POST", "plan", Plan, {"files": files})

    async def order(self, order: Order, route: str, revision: str, *, reason: str, etag: str) -> dict[str, Any]:
        """Move a revision; ``etag``: of the state that the order was made for."""
        body = {"revision": revision, "reason": reason}
        return await self._ask("POST", f"routes/{quote(route, safe='')}/{order}", dict[str, Any], body, etag)

    async def kill(self, route: str | None, *, reason: str) -> dict[str, Any]:
        """Switch speculation off at the next step, on a route or (``None``) on all."""
        return await self._ask("POST", "kill", dict[str, Any], {"route": route, "reason": reason})

    async def lift(self, route: str | None, *, reason: str) -> dict[str, Any]:
        """Undo ``kill``."""
        return await self._ask("DELETE", "kill", dict[str, Any], {"route": route, "reason": reason})

    async def drafters(self) -> dict[str, Any]:
        """What is loaded, and what uses it."""
        return await self._ask("GET", "drafters", dict[str, Any])

    async def load_drafter(self, name: str, body: Mapping[str, Any], *, etag: str | None) -> dict[str, Any]:
        """Load a drafter; ``body``: its type, path, max_k and options, and the reason. ``etag``: of the one that it
        replaces. Returns once it is loaded."""
        return await self._ask("PUT", f"drafters/{quote(name, safe='')}", dict[str, Any], body, etag, LOAD_S)

    async def unload_drafter(self, name: str, *, reason: str, etag: str) -> dict[str, Any]:
        """Drop a drafter; what is left."""
        path = f"drafters/{quote(name, safe='')}"
        return await self._ask("DELETE", path, dict[str, Any], {"reason": reason}, etag, LOAD_S)

    async def _ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        body: Mapping[str, Any] | None = None,
        etag: str | None = None,
        limit_s: float = TIMEOUT_S,
    ) -> T:
        if self._session is None:
            raise RuntimeError("AdminClient is used outside of its context")
        headers = {} if etag is None else {"if-match": etag}
        data = None if body is None else msgspec.json.encode(body)
        if data is not None:
            headers["content-type"] = "application/json"
        try:
            async with self._session.request(
                method,
                f"{self._base}/admin/v1/{path}",
                data=data,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=limit_s),
            ) as response:
                raw, status = await response.read(), response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise AdminRefused(f"no admin API answers at {self._where}: {type(error).__name__}: {error}") from None
        if status >= 300:
            raise _refused(status, raw)
        try:
            return msgspec.json.decode(raw, type=kind)
        except msgspec.MsgspecError as error:
            raise AdminRefused(
                f"{self._where} answers {method} /admin/v1/{path} otherwise than this version expects: {error}", status
            ) from None


def _refused(status: int, raw: bytes) -> AdminRefused:
    """The refusal in the server's words, where it is in OpenAI's form."""
    try:
        error = msgspec.json.decode(raw)["error"]
        return AdminRefused(f"refused with {status}: {error['message']}", status, error.get("code"))
    except (msgspec.MsgspecError, LookupError, TypeError, AttributeError):
        return AdminRefused(f"refused with {status}: {raw[:200].decode(errors='replace')}", status)
