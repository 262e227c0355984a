"""Wrong admin keys from one place are heard a few times a minute."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from specproxy.config.schema import AdminConfig
from specproxy.server.admin.app import admin_keys, build_admin_app
from specproxy.server.admin.guesses import MAX_PLACES, MOST_WRONG, Guesses
from specproxy.server.admin.layers import GUESSES
from specproxy.server.gating.gate import Gate
from specproxy.server.gating.operator import GateOperator
from tests.gating.desk import Clock

KEY = "the right key"


@asynccontextmanager
async def answering(gate: Gate, clock: Clock) -> AsyncIterator[str]:
    """The admin API with a clock that the test turns; the URL of its status."""
    config = AdminConfig(port=0)
    app = build_admin_app(GateOperator(gate), admin_keys(config, {config.key_env: KEY}), config)
    app[GUESSES] = Guesses(clock)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/admin/v1/status"
    await runner.cleanup()


async def ask(url: str, key: str, *, address: str = "127.0.0.1") -> aiohttp.ClientResponse:
    """One request with this key from this address, read to its end."""
    connector = aiohttp.TCPConnector(local_addr=(address, 0))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http, http.get(url) as response:
        await response.read()
        return response


async def test_after_ten_wrong_keys_in_a_minute_no_key_is_heard_from_there(gate: Gate) -> None:
    """429 with the time to wait, the right key included; from elsewhere it works, and here again a minute later."""
    clock = Clock()
    async with answering(gate, clock) as url:
        for number in range(MOST_WRONG):
            assert (await ask(url, f"guess {number}")).status == 401
        for key in ("another guess", KEY):
            refused = await ask(url, key)
            assert refused.status == 429
            assert 55 <= int(refused.headers["retry-after"]) <= 60
        assert (await ask(url, "")).status == 401
        assert (await ask(url, KEY, address="127.0.0.2")).status == 200
        clock.now += 61
        assert (await ask(url, KEY)).status == 200


async def test_right_keys_and_missing_ones_are_no_guesses(gate: Gate) -> None:
    """An operator whose page asks often is never kept out."""
    async with answering(gate, Clock()) as url:
        for key in [KEY, ""] * MOST_WRONG:
            assert (await ask(url, key)).status == (200 if key else 401)
        assert (await ask(url, KEY)).status == 200


def test_the_span_slides() -> None:
    """Wrong keys of longer ago do not count, and a guess is heard again for each that has become so old."""
    clock = Clock()
    guesses = Guesses(clock)
    for _ in range(MOST_WRONG):
        assert guesses.wait_s("10.0.0.1") == 0
        guesses.wrong("10.0.0.1")
        clock.now += 5
    assert guesses.wait_s("10.0.0.1") == pytest.approx(10, abs=0.1)
    clock.now += 10
    assert guesses.wait_s("10.0.0.1") == 0
    guesses.wrong("10.0.0.1")
    assert guesses.wait_s("10.0.0.1") == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        (None, "", True),
    ],
)
def test_a_place_is_an_address_or_a_network_of_version_six(one: str | None, other: str, same: bool) -> None:
    """A host of IPv6 has 2⁶⁴ addresses to guess from."""
    guesses = Guesses(Clock())
    for _ in range(MOST_WRONG):
        guesses.wrong(one)
    assert (guesses.wait_s(other) > 0) == same


def test_memory_is_bounded_and_keeps_whoever_guessed_last() -> None:
    """However many places there are."""
    guesses = Guesses(Clock())
    for number in range(3 * MAX_PLACES):
        for _ in range(MOST_WRONG):
            guesses.wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(guesses) == MAX_PLACES
    assert guesses.wait_s("10.0.0.0") == 0
    assert guesses.wait_s("10.0.11.255") > 0
