"""Who may ask, from where, and what browsers are told."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import aiohttp
import pytest

from specproxy.cli.admin_client import AdminClient
from specproxy.config.load import load_start_config
from specproxy.config.schema import AdminConfig
from specproxy.errors import AdminRefused, ConfigError
from specproxy.server.admin.app import serving
from specproxy.server.admin.assets import PUBLIC
from specproxy.server.admin.claim import claim_admin, release, url_of
from tests.admin.conftest import KEY, NEW, Admin, PausedOperator, ring

PATHS = [
    ("GET", "/admin/v1/status"),
    ("GET", "/admin/v1/routes/code/revisions"),
    ("GET", "/admin/v1/log"),
    ("GET", "/admin/v1/events"),
    ("GET", "/admin/v1/openapi.json"),
    ("GET", "/admin/v1/bundles/x"),
    ("POST", "/admin/v1/validate"),
    ("POST", "/admin/v1/explain"),
    ("POST", "/admin/v1/plan"),
    ("POST", "/admin/v1/routes/code/promote"),
    ("POST", "/admin/v1/kill"),
    ("DELETE", "/admin/v1/kill"),
    ("GET", "/admin/v1/nothing"),
    ("GET", "/metrics"),
    ("POST", "/"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("authorization", ["", f"Bearer {KEY}x", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY},"])
async def test_everything_needs_the_key(admin: Admin, method: str, path: str, authorization: str) -> None:
    """Without it even what does not exist answers 401, and nothing is done."""
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, admin.url + path, headers={"authorization": authorization}) as response,
    ):
        assert (response.status, (await response.json())["error"]["code"]) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert admin.operator.gate.book.kills == []


async def test_a_key_in_the_url_is_no_key(admin: Admin) -> None:
    """URLs end up in logs and histories."""
    async with aiohttp.ClientSession() as http, http.get(f"{admin.url}/admin/v1/status?key={KEY}") as response:
        assert response.status == 401


async def test_each_of_several_keys_is_an_actor_of_its_own(operator: PausedOperator) -> None:
    """The log tells whose key it was, and no header can say otherwise."""
    config = AdminConfig(port=0)
    listener = claim_admin(config, {config.key_env: "one,two"})
    assert listener is not None
    async with serving(listener, operator, ring("one", "two"), config):
        for key in ("one", "two"):
            headers = {"authorization": f"Bearer {key}", "x-actor": "root", "content-type": "application/json"}
            body = '{"route": "code", "reason": "r"}'
            async with (
                aiohttp.ClientSession(headers=headers) as http,
                http.post(f"{url_of(listener)}/admin/v1/kill", data=body) as response,
            ):
                assert response.status == 200
    release(listener, config)
    first, second = (entry.actor for entry in operator.entries()[-2:])
    assert first != second
    assert first.startswith("env-")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("localhost:9", 200), ("LOCALHOST", 200), ("[::1]:8001", 200), ("10.1.2.3", 200),
        ("ops.example", 200), ("evil.example", 421), ("localhost.evil.example:80", 421), ("[", 421),
        ("127.0.0.1.x", 421),
    ],
)  # fmt: skip
async def test_only_names_that_are_known_are_answered(operator: PausedOperator, host: str, status: int) -> None:
    """A name that was made to point here gets nothing; addresses and ``admin.names`` do."""
    config = AdminConfig(port=0, names=["Ops.example"])
    listener = claim_admin(config, {config.key_env: KEY})
    assert listener is not None
    headers = {"authorization": f"Bearer {KEY}", "host": host}
    async with (
        serving(listener, operator, ring(KEY), config),
        aiohttp.ClientSession() as http,
        http.get(f"{url_of(listener)}/admin/v1/status", headers=headers) as response,
    ):
        assert response.status == status
    release(listener, config)


@pytest.mark.parametrize("path", ["/admin/v1/status", "/"])
async def test_a_page_of_another_origin_gets_nothing(admin: Admin, path: str) -> None:
    """Even with the key; the own origin is answered."""
    async with admin.http.get(admin.url + path, headers={"origin": "http://evil.example"}) as response:
        assert response.status == 403
        assert "access-control-allow-origin" not in response.headers
    async with admin.http.get(admin.url + path, headers={"origin": "null"}) as response:
        assert response.status == 403
    async with admin.http.get(admin.url + path, headers={"origin": admin.url}) as response:
        assert response.status == 200


async def test_the_page_is_open_and_strict(admin: Admin) -> None:
    """Its files need no key, hold nothing inline and nothing from elsewhere, and the browser enforces that."""
    async with aiohttp.ClientSession() as http:
        for path in PUBLIC:
            async with http.get(admin.url + path) as response:
                text = await response.text()
                assert response.status == 200
                policy = response.headers["content-security-policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert response.headers["x-content-type-options"] == "nosniff"
            for forbidden in ("http://", "https://", "innerHTML", "onclick=", "eval(", 'style="', "localStorage."):
                assert forbidden not in text.replace("http://www.w3.org/2000/svg", ""), (path, forbidden)


async def test_answers_are_not_cached(admin: Admin) -> None:
    """They say who may do what right now."""
    async with admin.http.get(f"{admin.url}/admin/v1/status") as response:
        assert response.headers["cache-control"] == "no-store"


async def test_a_unix_socket_needs_no_key_where_none_is_set(operator: PausedOperator, tmp_path: Path) -> None:
    """Only this user can open it; the actor is the user, and the path is gone afterwards."""
    path = tmp_path / "admin.sock"
    config = AdminConfig(socket=str(path))
    listener = claim_admin(config, {})
    assert listener is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with serving(listener, operator, ring(), config), AdminClient(f"unix:{path}", "") as client:
        tag = (await client.revisions("code"))[1].etag
        await client.order("pause", "code", NEW, reason="r", etag=tag)
    release(listener, config)
    assert operator.entries()[-1].actor in (f"uid-{os.getuid()}", "socket")
    assert not path.exists()


async def test_a_unix_socket_needs_the_key_where_one_is_set(operator: PausedOperator, tmp_path: Path) -> None:
    """A key is asked for wherever there is one."""
    config = AdminConfig(socket=str(tmp_path / "admin.sock"))
    listener = claim_admin(config, {})
    assert listener is not None
    async with serving(listener, operator, ring(KEY), config):
        async with AdminClient(url_of(listener), "wrong") as client:
            with pytest.raises(AdminRefused, match="401"):
                await client.status()
        async with AdminClient(url_of(listener), KEY) as client:
            assert (await client.status())["routes"]
    release(listener, config)


async def test_over_the_network_nothing_is_answered_without_a_key(operator: PausedOperator) -> None:
    """Should anybody start it so, it still answers nobody."""
    config = AdminConfig(port=0)
    listener = claim_admin(config, {config.key_env: KEY})
    assert listener is not None
    async with serving(listener, operator, ring(), config), AdminClient(url_of(listener), KEY) as client:
        with pytest.raises(AdminRefused, match="401"):
            await client.status()
    release(listener, config)


@pytest.mark.parametrize("env", [{}, {"SPECPROXY_ADMIN_KEY": ""}, {"SPECPROXY_ADMIN_KEY": " , "}, {"OTHER": "x"}])
def test_without_key_and_path_there_is_no_listener(env: dict[str, str]) -> None:
    """Deny by default begins here."""
    assert claim_admin(AdminConfig(port=0), env) is None


def test_a_socket_that_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    """One that somebody listens on, and a file that is none, are not."""
    path = tmp_path / "admin.sock"
    config = AdminConfig(socket=str(path))
    abandoned = socket.socket(socket.AF_UNIX)
    abandoned.bind(str(path))
    abandoned.close()
    listener = claim_admin(config, {})
    assert listener is not None
    with pytest.raises(ConfigError, match="another process listens"):
        claim_admin(config, {})
    release(listener, config)
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is no socket"):
        claim_admin(config, {})
    assert path.read_text() == "precious"


def test_a_port_that_is_taken_and_a_folder_that_is_not_there_are_said(tmp_path: Path) -> None:
    """With what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = AdminConfig(port=other.getsockname()[1])
        with pytest.raises(ConfigError, match="--admin-port"):
            claim_admin(config, {config.key_env: KEY})
    with pytest.raises(ConfigError, match=r"admin.socket.*choose another path"):
        claim_admin(AdminConfig(socket=str(tmp_path / "none" / "s")), {})


def test_the_settings_have_flags_and_variables() -> None:
    """As all others have."""
    config = load_start_config(
        env={"SPECPROXY_ADMIN__SOCKET": "/run/a.sock", "SPECPROXY_ADMIN_KEY": "secret"}, flags={"admin.port": "9"}
    )
    assert (config.admin.socket, config.admin.port) == ("/run/a.sock", 9)
