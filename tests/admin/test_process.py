"""``specproxy serve`` with an admin listener: the real gate behind it, the command line in front of it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.admin.conftest import KEY, POLICY
from tests.support.browser import browse, chromium

pytestmark = pytest.mark.timeout(180)


class Served:
    """A server with one gated route, its policies' folder and its admin address."""

    def __init__(self, folder: Path, start_server: Callable[..., Any], *flags: str, key: str | None = KEY) -> None:
        self.policies = folder / "policies"
        self.policies.mkdir()
        self.write(k=4)
        self.env = {} if key is None else {"SPECPROXY_ADMIN_KEY": key}
        self.flags = ["--policies", str(self.policies), "--set", f"state.path={folder / 'gate.db'}", *flags]
        self.server = start_server(*self.flags, "--drafter", "ngram=ngram", env=self.env)
        self.address: str = self.server.ready()["admin"]

    def write(self, *, k: int) -> None:
        """Policies whose route ``code`` drafts so much, with the gate on."""
        (self.policies / "code.yaml").write_text(POLICY.replace("k: 4", f"k: {k}"))

    def command(self, *words: str, key: str | None = KEY) -> subprocess.CompletedProcess[str]:
        """``specproxy policy …`` against this server."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("SPECPROXY_")}
        env |= {} if key is None else {"SPECPROXY_ADMIN_KEY": key}
        command = [sys.executable, "-m", "specproxy", "policy", *words, "--admin", self.address]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)

    def ask(self, path: str) -> Any:
        """GET from the admin port."""
        headers = {"authorization": f"Bearer {KEY}"}
        answer = httpx.get(f"{self.address}/admin/v1{path}", headers=headers, timeout=20, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Any]) -> Iterator[Served]:
    """One server for the module, on a port that the system chose."""
    made = Served(tmp_path_factory.mktemp("admin"), start_server, "--admin-port", "0")
    yield made
    assert made.server.stop() == 0


def test_ready_says_where_operators_are_answered(served: Served) -> None:
    """The address that ``--admin`` takes; the public port knows nothing of the API."""
    assert served.address.startswith("http://127.0.0.1:")
    assert served.address != served.server.url
    assert served.server.get("/admin/v1/status").status_code == 404
    assert httpx.get(f"{served.address}/admin/v1/status", trust_env=False).status_code == 401


def test_the_status_is_the_gates(served: Served) -> None:
    """Engine, numerics, and both routes with what is active."""
    status = served.ask("/status")
    assert (status["engine"], status["exactness"]) == ("ready", served.server.ready()["exactness"])
    assert [route["route"] for route in status["routes"]] == ["code", "default"]
    assert all(len(route["revision"]) == 64 for route in status["routes"])


def test_an_edit_is_moved_by_the_command_line(served: Served, eventually: Callable[..., None]) -> None:
    """Save a file, plan it, see the candidate, pause it, fail to promote it, roll it back; the log has every step."""

    def candidate() -> dict[str, Any] | None:
        found: dict[str, Any] | None = served.ask("/status")["routes"][0]["candidate"]
        return found

    served.write(k=2)
    planned = served.command("plan", str(served.policies), "--json")
    assert planned.returncode == 0, planned.stderr
    assert [route["route"] for route in msgspec.json.decode(planned.stdout)["routes"]] == ["code"]
    eventually(lambda: (found := candidate()) and found["phase"] == "shadow", timeout_s=20, what="shadow")
    refused = served.command("promote", "code", "--reason", "now")
    assert refused.returncode != 0
    assert "not proven yet" in refused.stderr
    assert served.command("pause", "code", "--reason", "wait for Monday").returncode == 0
    found = candidate()
    assert found is not None
    assert found["phase"] == "paused"
    digits = found["revision"][:12]
    assert served.command("rollback", "code", digits, "--reason", "bad idea").returncode == 0
    reasons = [(entry["reason"], entry["actor"][:4]) for entry in served.ask("/log")["entries"][-2:]]
    assert reasons == [("wait for Monday", "env-"), ("bad idea", "env-")]
    assert "wrong" not in served.command("kill", "--reason", "r", key="wrong").stdout


def test_a_kill_stops_drafting_at_once_and_lifting_it_starts_it_again(served: Served) -> None:
    """The next answer drafts nothing and has the same text; then it drafts again."""

    def answer() -> tuple[str, bool]:
        body = {
            "model": "house",
            "messages": [{"role": "user", "content": "Count: one two three one two three one two three"}],
            "temperature": 0,
            "max_tokens": 96,
            "ignore_eos": True,
            "metadata": {"kind": "code"},
        }
        before = served.server.metric("specproxy_draft_tokens_total", route="code")
        done = httpx.post(f"{served.server.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        drafted = served.server.metric("specproxy_draft_tokens_total", route="code") - before
        return done.json()["choices"][0]["message"]["content"], drafted > 0

    text, drafted = answer()
    assert drafted
    assert served.command("kill", "code", "--reason", "odd answers").returncode == 0
    assert answer() == (text, False)
    assert served.ask("/status")["routes"][0]["switches"][0]["reason"] == "odd answers"
    assert served.command("kill", "code", "--lift", "--reason", "found it").returncode == 0
    assert answer() == (text, True)


@pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium-headless-shell")
async def test_the_dashboard_shows_a_running_server(served: Served) -> None:
    """With its real numbers, and without any fault of the page."""
    program = chromium()
    assert program is not None
    async with browse(program) as page:
        await page.look()
        await page.open(served.address)
        await page.until("document.activeElement.id === 'key'")
        page.problems.clear()
        await page.type(KEY)
        await page.press("Enter")
        await page.until("document.querySelectorAll('[data-route] svg').length > 0")
        await page.until("document.querySelectorAll('#log tbody tr').length > 2")
        assert page.problems == []


def test_a_unix_socket_in_place_of_the_port(tmp_path: Path, start_server: Callable[..., Any]) -> None:
    """No key is set: only this user can open it; it is gone after a clean end, also with an open event stream."""
    path = tmp_path / "admin.sock"
    served = Served(tmp_path, start_server, "--admin-socket", str(path), key=None)
    assert served.address == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    done = served.command("kill", "--reason", "all of them", key=None)
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["actor"] in (f"uid-{os.getuid()}", "socket")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://admin") as client:  # noqa: SIM117
        with client.stream("GET", "/admin/v1/events") as stream:
            assert next(stream.iter_lines()) == "event: status"
            began = time.monotonic()
            assert served.server.stop(signal.SIGTERM) == 0
            assert time.monotonic() - began < 10
    assert not path.exists()


def test_without_key_and_socket_there_is_none(server: Any) -> None:
    """As before: one port, and /ready says so."""
    assert server.ready()["admin"] is None
