"""specproxy policy promote, rollback, pause, resume, kill and plan, and their client, against an HTTP server that
answers as the admin API is to answer and notes what it was asked."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from specproxy.cli.admin_client import AdminClient
from specproxy.cli.main import main
from specproxy.config.schema import AdminConfig
from specproxy.errors import AdminRefused, ConfigError

KEY = "secret"
PLAN = {"requests": 3, "changes": [], "flows": [{"before": "a", "after": "b", "requests": 2}], "routes": []}
REVISIONS = [
    {"revision": "aaaa1111" * 8, "phase": "active", "etag": '"4"', "since": 5},
    {"revision": "bbbb2222" * 8, "phase": "canary", "etag": '"7"'},
]


@dataclass
class Asked:
    """What the server was asked: method, path with query, If-Match, body."""

    calls: list[tuple[str, str, str | None, Any]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        """Note the call; refuse a wrong key, and orders that were made for another state."""
        text = await request.text()
        etag = request.headers.get("if-match")
        self.calls.append((request.method, request.path_qs, etag, json.loads(text) if text else None))
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return refusal(401, "invalid_api_key", "no such key")
        path = request.path.removeprefix("/admin/v1/")
        if path.endswith("/revisions"):
            return web.json_response({"revisions": REVISIONS})
        if path.startswith("routes/") and etag not in ('"4"', '"7"'):
            return refusal(412, "stale_version", "it is at version 8 by now")
        if path == "plan":
            return web.json_response(PLAN)
        return web.json_response({"path": path}) if path != "log" else web.Response(text="not JSON")


def refusal(status: int, code: str, message: str) -> web.Response:
    """In OpenAI's form."""
    error = {"message": message, "type": "invalid_request_error", "code": code, "param": None}
    return web.json_response({"error": error}, status=status)


@asynccontextmanager
async def serving(asked: Asked, socket: str | None = None) -> AsyncIterator[str]:
    """The server, on a free port or a Unix socket; its URL as the client takes it."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", asked.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.UnixSite(runner, socket) if socket else web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"unix:{socket}" if socket else f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
def asked() -> Asked:
    """What was asked."""
    return Asked()


@pytest.fixture
def url(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server in a thread of its own, for commands that run their own event loop; its key is in the environment."""
    monkeypatch.setenv("SPECPROXY_ADMIN_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")
    loop, stop, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    found: list[str] = []

    async def serve() -> None:
        async with serving(asked) as where:
            found.append(where)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(10)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.mark.parametrize(
    ("call", "method", "path", "etag", "body"),
    [
        (lambda c: c.status(), "GET", "status", None, None),
        (lambda c: c.revisions("a/b c"), "GET", "routes/a%2Fb%20c/revisions", None, None),
        (lambda c: c.validate({"a.yaml": "x"}), "POST", "validate", None, {"files": {"a.yaml": "x"}}),
        (lambda c: c.explain({"messages": []}), "POST", "explain", None, {"request": {"messages": []}}),
        (lambda c: c.plan({"a.yaml": "x"}), "POST", "plan", None, {"files": {"a.yaml": "x"}}),
        (
            lambda c: c.order("pause", "r", "ab" * 32, reason="why", etag='"7"'),
            "POST",
            "routes/r/pause",
            '"7"',
            {"revision": "ab" * 32, "reason": "why"},
        ),
        (lambda c: c.kill(None, reason="why"), "POST", "kill", None, {"route": None, "reason": "why"}),
        (lambda c: c.lift("r", reason="why"), "DELETE", "kill", None, {"route": "r", "reason": "why"}),
    ],
)
async def test_calls_are_what_the_api_takes(
    asked: Asked,
    call: Callable[[AdminClient], Coroutine[Any, Any, Any]],
    method: str,
    path: str,
    etag: str | None,
    body: Any,
) -> None:
    """Method, path, If-Match and body of each, with the key that the configuration's variable holds."""
    async with serving(asked) as where:
        config = AdminConfig(port=int(where.rpartition(":")[2]), key_env="MINE")
        async with AdminClient.from_config(config, {"MINE": KEY}) as client:
            await call(client)
    assert asked.calls == [(method, f"/admin/v1/{path}", etag, body)]


async def test_a_unix_socket_serves_as_well(asked: Asked, tmp_path: Path) -> None:
    """Named by its path."""
    async with serving(asked, str(tmp_path / "s")) as where, AdminClient(where, KEY) as client:
        assert await client.status() == {"path": "status"}


async def test_refusals_keep_the_servers_words(asked: Asked) -> None:
    """With status and code, so that a caller can tell them apart."""
    async with serving(asked) as where:
        async with AdminClient(where, KEY) as client:
            with pytest.raises(AdminRefused, match="refused with 412: it is at version 8 by now") as stale:
                await client.order("promote", "r", "ab" * 32, reason="why", etag='"1"')
            with pytest.raises(AdminRefused, match="answers GET /admin/v1/log\\?after=4 otherwise"):
                await client.log(4)
        async with AdminClient(where, "other") as client:
            with pytest.raises(AdminRefused, match="refused with 401: no such key") as unknown:
                await client.status()
    assert (stale.value.status, stale.value.code) == (412, "stale_version")
    assert (unknown.value.status, unknown.value.code) == (401, "invalid_api_key")
    async with AdminClient(where, KEY) as client:
        with pytest.raises(AdminRefused, match=f"no admin API answers at {where}"):
            await client.status()


@pytest.mark.parametrize("env", [{}, {"MINE": ""}, {"MINE": " , other"}])
def test_no_key_is_one_message(env: dict[str, str]) -> None:
    """It names the variable."""
    with pytest.raises(ConfigError, match="MINE is not set"):
        AdminClient.from_config(AdminConfig(key_env="MINE"), env)
    with pytest.raises(ConfigError, match="MINE is not set"):
        AdminClient.from_config(AdminConfig(key_env="MINE", socket="/s"), env, "http://127.0.0.1:8001")


@pytest.mark.parametrize("given", [True, False])
async def test_a_unix_socket_needs_no_key(asked: Asked, tmp_path: Path, *, given: bool) -> None:
    """Named on the command line or by the configuration, it is asked without one; the server says whether it may."""
    path = tmp_path / "s"
    async with serving(asked, str(path)) as where:
        config = AdminConfig(key_env="MINE", socket="" if given else str(path))
        async with AdminClient.from_config(config, {}, where if given else None) as client:
            with pytest.raises(AdminRefused, match="refused with 401"):
                await client.status()
        async with AdminClient.from_config(config, {"MINE": f"{KEY},other"}, where if given else None) as client:
            assert await client.status() == {"path": "status"}


@pytest.mark.parametrize(
    ("command", "revision", "etag"),
    [
        (["promote", "chat"], REVISIONS[1], '"7"'),
        (["pause", "chat", "bbbb22"], REVISIONS[1], '"7"'),
        (["rollback", "chat"], REVISIONS[0], '"4"'),
        (["rollback", "chat", "--if-match", '"4"'], REVISIONS[0], '"4"'),
    ],
)
def test_orders_are_given_for_the_state_that_was_read(
    url: str, asked: Asked, capsys: pytest.CaptureFixture[str], command: list[str], revision: dict[str, str], etag: str
) -> None:
    """The revision that can be meant, or the one that is named, with its ETag."""
    assert main(["policy", *command, "--reason", "why", "--admin", url]) == 0
    order = f"/admin/v1/routes/chat/{command[0]}"
    assert asked.calls[1:] == [("POST", order, etag, {"revision": revision["revision"], "reason": "why"})]
    assert json.loads(capsys.readouterr().out) == {"path": f"routes/chat/{command[0]}"}


def test_a_stale_order_changes_nothing_and_says_so(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One message, exit code 1."""
    assert main(["policy", "promote", "chat", "--reason", "why", "--if-match", '"6"', "--admin", url]) == 1
    assert capsys.readouterr().err == "specproxy: refused with 412: it is at version 8 by now\n"


@pytest.mark.parametrize("command", [["resume", "chat"], ["pause", "chat", "cccc"], ["pause", "chat", "b"]])
def test_orders_for_no_single_revision_are_not_given(
    url: str, asked: Asked, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """With the revisions that there are."""
    assert main(["policy", *command, "--reason", "why", "--admin", url]) == 1
    assert "the server has: aaaa1111aaaa (active), bbbb2222bbbb (canary)" in capsys.readouterr().err
    assert [method for method, *_ in asked.calls] == ["GET"]


def test_the_kill_switch_of_a_route_and_of_all(url: str, asked: Asked) -> None:
    """On and off."""
    assert main(["policy", "kill", "chat", "--reason", "fire", "--admin", url]) == 0
    assert main(["policy", "kill", "--lift", "--reason", "out", "--admin", url]) == 0
    assert asked.calls == [
        ("POST", "/admin/v1/kill", None, {"route": "chat", "reason": "fire"}),
        ("DELETE", "/admin/v1/kill", None, {"route": None, "reason": "out"}),
    ]


def test_plan_of_a_servers_last_requests(
    url: str, asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The candidate's files go there; an empty folder does not."""
    (tmp_path / "a.yaml").write_text("routes: [{name: a}]\n")
    (tmp_path / "notes.txt").write_text("no policy")
    assert main(["policy", "plan", str(tmp_path), "--admin", url]) == 0
    assert "2 requests would go from route a to b" in capsys.readouterr().out
    assert asked.calls == [("POST", "/admin/v1/plan", None, {"files": {"a.yaml": "routes: [{name: a}]\n"}})]
    (tmp_path / "a.yaml").unlink()
    assert main(["policy", "plan", str(tmp_path), "--admin", url]) == 1
    assert "holds no policy files" in capsys.readouterr().err
