"""The event stream: what has changed arrives at once, and whoever goes away leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest

from specproxy.config.schema import AdminConfig
from specproxy.server.admin import events as module
from specproxy.server.admin.app import serving
from specproxy.server.admin.claim import claim_admin, url_of
from specproxy.server.admin.operator import etag_of
from specproxy.server.gating.traffic import RouteTraffic
from tests.admin.conftest import KEY, NEW, Admin, PausedOperator, ring


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """(kind, data) as they come."""
    while head := await response.content.readline():
        kind = head.decode().strip().removeprefix("event: ")
        data = (await response.content.readline()).removeprefix(b"data: ")
        assert await response.content.readline() == b"\n"
        yield kind, msgspec.json.decode(data)


async def gone(admin: Admin) -> None:
    """Until nobody listens any more."""
    for _ in range(200):
        if not admin.operator.listeners:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("somebody still listens")


async def test_a_move_arrives_as_status_and_log_entry(admin: Admin) -> None:
    """Long before the next regular status."""
    async with admin.http.get(f"{admin.url}/admin/v1/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        stream = events(response)
        kind, status = await anext(stream)
        assert (kind, status["routes"][0]["candidate"]["phase"]) == ("status", "canary")
        body = {"revision": NEW, "reason": "look into it"}
        tag = etag_of(admin.operator.state())
        assert (await admin.ask("POST", "/routes/code/pause", body, If_Match=tag))[0] == 200
        async with asyncio.timeout(module.EVERY_S / 2):
            kind, status = await anext(stream)
            assert (kind, status["routes"][0]["candidate"]["phase"]) == ("status", "paused")
            kind, log = await anext(stream)
            assert (kind, [entry["reason"] for entry in log["entries"]]) == ("log", ["look into it"])


async def test_the_log_is_caught_up_with(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names the last entry seen misses none, however many there are."""
    monkeypatch.setattr(module, "MAX_LOG", 3)
    last = admin.operator.verify()
    async with admin.http.get(f"{admin.url}/admin/v1/events?after=1") as response:
        seen: list[int] = []
        async for kind, data in events(response):
            seen += [entry["seq"] for entry in data["entries"]] if kind == "log" else []
            if seen and seen[-1] == last:
                break
    assert seen == [*range(2, last + 1)]


async def test_numbers_arrive_without_any_move(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters move all the time, so the status comes regularly."""
    monkeypatch.setattr(module, "EVERY_S", 0.05)
    async with admin.http.get(f"{admin.url}/admin/v1/events") as response:
        stream = events(response)
        await anext(stream)
        admin.operator.gate.traffic.routes["code"] = RouteTraffic(requests=99)
        async with asyncio.timeout(5):
            async for _, status in stream:
                if status["routes"][0]["requests"] == 99:
                    break


async def test_a_client_that_goes_away_leaves_nothing_behind(admin: Admin) -> None:
    """Its listener at the operator is closed, and its place is free."""
    for _ in range(module.MAX_STREAMS + 2):
        async with admin.http.get(f"{admin.url}/admin/v1/events") as response:
            assert response.status == 200
            await response.content.readline()
            assert admin.operator.listeners == 1
            response.close()
        await gone(admin)


async def test_streams_are_bounded(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one too many is refused, with a hint when to come back."""
    monkeypatch.setattr(module, "MAX_STREAMS", 1)
    async with admin.http.get(f"{admin.url}/admin/v1/events") as first:
        await first.content.readline()
        async with admin.http.get(f"{admin.url}/admin/v1/events") as second:
            assert (second.status, second.headers["x-should-retry"]) == (429, "true")


async def test_a_fault_ends_the_stream_with_an_error(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as though all were said."""
    monkeypatch.setattr(module, "EVERY_S", 0.05)
    async with admin.http.get(f"{admin.url}/admin/v1/events") as response:
        await anext(events(response))
        admin.operator.damage(
            "DROP TRIGGER audit_keeps_entries",
            "CREATE TRIGGER damage AFTER INSERT ON audit BEGIN UPDATE audit SET body = x'00' WHERE seq = NEW.seq; END",
        )
        assert (await admin.ask("POST", "/kill", {"route": "code", "reason": "odd answers"}))[0] == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()


async def test_the_stream_ends_when_the_server_does(operator: PausedOperator) -> None:
    """Cleanly and at once, so that a page knows that it may come back."""
    config = AdminConfig(port=0)
    listener = claim_admin(config, {config.key_env: KEY})
    assert listener is not None
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as http:
        async with serving(listener, operator, ring(KEY), config):
            response = await http.get(f"{url_of(listener)}/admin/v1/events")
            await response.content.readline()
            began = time.monotonic()
        assert (await response.content.read()).endswith(b"\n\n")
        assert time.monotonic() - began < 0.9
        assert not operator.listeners


async def test_a_bad_start_is_an_error_before_the_stream(admin: Admin) -> None:
    """With a status, as nothing was sent yet."""
    assert (await admin.ask("GET", "/events?after=x"))[0] == 400
