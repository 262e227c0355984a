"""Drafters that come and go while a server runs: the real engine, the house model, its bundled head."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.conftest import RunningServer, wait_until

pytestmark = pytest.mark.timeout(240)

HEAD = Path(__file__).parents[2] / "specproxy" / "models" / "house" / "eagle3"
NGRAM = {"type": "ngram", "reason": "r"}
POLICY = """\
version: 1
defaults: {{override: true, hold_out: 0}}
routes:
  - name: gated
    match: {{metadata: {{kind: gated}}}}
    gate: {{mode: auto, min_samples: 60}}
    speculate: {{drafters: {gated}}}
  - name: free
    match: {{metadata: {{kind: free}}}}
    speculate: {{drafters: {free}}}
  - {{name: default, speculate: {{drafters: auto}}}}
"""


@dataclass
class Served:
    """A server with an admin socket; ``default`` drafts with whatever is loaded."""

    folder: Path
    start: Callable[..., RunningServer]
    server: RunningServer = field(init=False)

    def run(self) -> None:
        """Start it, again with the same files."""
        policies = self.folder / "policies"
        if not policies.exists():
            policies.mkdir()
            self.write()
        flags = ["--policies", str(policies), "--set", f"state.path={self.folder / 'gate.db'}"]
        self.server = self.start(*flags, "--admin-socket", str(self.socket), "--drafter", "ngram=ngram")
        wait_until(self.socket.exists, what="the admin socket")

    @property
    def socket(self) -> Path:
        """Of the admin API."""
        return self.folder / "admin.sock"

    def write(self, gated: str = "ngram", free: str = "ngram") -> None:
        """What the two routes draft with from now on."""
        (self.folder / "policies" / "all.yaml").write_text(POLICY.format(gated=gated, free=free))

    def ask(self, method: str, path: str, body: Any = None, etag: str = "") -> tuple[int, Any]:
        """Status and body of an admin call."""
        transport = httpx.HTTPTransport(uds=str(self.socket))
        with httpx.Client(transport=transport, base_url="http://localhost/admin/v1", timeout=60) as client:
            answer = client.request(method, path, json=body, headers={"if-match": etag} if etag else {})
        return answer.status_code, answer.json()

    def drafters(self) -> dict[str, dict[str, Any]]:
        """What is there, by name."""
        return {item["name"]: item for item in self.ask("GET", "/drafters")[1]["drafters"]}

    def load(self, name: str, body: Any) -> Any:
        """Load a drafter."""
        status, answer = self.ask("PUT", f"/drafters/{name}", body)
        assert status == 200, answer
        return answer

    def unload(self, name: str) -> tuple[int, Any]:
        """Unload a drafter, whatever it is now."""
        return self.ask("DELETE", f"/drafters/{name}", {"reason": "r"}, self.drafters()[name]["etag"])

    def answer(self, override: str = "", **fields: Any) -> tuple[str, dict[str, int]]:
        """Text, and drafted tokens by drafter."""
        body = {
            "model": "house",
            "messages": [{"role": "user", "content": "Count: one two three one two three one two three"}],
            "temperature": 0,
            "max_tokens": 48,
            "ignore_eos": True,
        }
        headers = {"x-specproxy-speculate": override} if override else {}
        url = f"{self.server.url}/v1/chat/completions"
        done = httpx.post(url, json=body | fields, headers=headers, timeout=100, trust_env=False)
        assert done.status_code == 200, done.text
        found = done.json()
        counts = {item["name"]: item["drafted"] for item in found["specproxy"]["drafters"]}
        return found["choices"][0]["message"]["content"], counts

    def log(self) -> list[dict[str, Any]]:
        """The audit log."""
        entries: list[dict[str, Any]] = self.ask("GET", "/log")[1]["entries"]
        return entries

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``specproxy drafter …`` against this server."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("SPECPROXY_")}
        command = [sys.executable, "-m", "specproxy", "drafter", *words, "--admin", f"unix:{self.socket}"]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., RunningServer]) -> Iterator[Served]:
    """One server for the module; tests leave the drafters as they found them."""
    made = Served(tmp_path_factory.mktemp("drafters"), start_server)
    made.run()
    yield made
    assert made.server.stop() == 0


def test_a_head_is_loaded_used_and_unloaded(served: Served) -> None:
    """It drafts for a request that names it, which has the text of one without; then it is gone. The log tells."""
    plain, _ = served.answer("off")
    before = served.drafters()
    loaded = served.load("head", {"type": "eagle3", "path": "house", "reason": "the October head"})
    assert (loaded["loaded"], loaded["declared"], loaded["routes"]) == (True, "at run time", ["default"])
    assert loaded["weight_bytes"] > 2**20
    text, drafted = served.answer("head;k=3")
    assert text == plain
    assert drafted["head"] > 0
    assert served.unload("head")[0] == 200
    assert served.drafters() == before
    headers = {"x-specproxy-speculate": "head"}
    url = f"{served.server.url}/v1/chat/completions"
    body = {"model": "house", "messages": [{"role": "user", "content": "x"}]}
    assert httpx.post(url, json=body, headers=headers, timeout=20, trust_env=False).status_code == 400
    told = {entry["route"]: entry for entry in served.log() if "the October head" in entry["reason"]}
    assert set(told) == {"gated", "free", "default"}
    assert "drafter head loaded (eagle3, " in told["free"]["reason"]
    assert told["free"]["actor"] == f"uid-{os.getuid()}"
    assert any("drafter head unloaded" in entry["reason"] for entry in served.log())


def test_a_policy_that_names_a_drafter_goes_on_once_it_is_loaded(served: Served) -> None:
    """Refused before; then active where there is no gate, a candidate where there is one. What a route names stays."""
    served.write(gated="late", free="late")
    wait_until(lambda: served.server.ready()["policy"]["error"], what="the refusal of the file")
    assert '"late" is no declared drafter' in served.server.ready()["policy"]["error"]
    served.load("late", NGRAM | {"options": {"max_n": 7}})
    kind = {"kind": "free"}
    wait_until(lambda: "late" in served.answer(metadata=kind)[1], what="the route without a gate")

    def candidate() -> Any:
        return next(r for r in served.ask("GET", "/status")[1]["routes"] if r["route"] == "gated")["candidate"]

    wait_until(lambda: (found := candidate()) and found["phase"] == "shadow", what="the candidate in shadow")
    assert set(served.answer(metadata={"kind": "gated"})[1]) == {"ngram"}
    status, refused = served.unload("late")
    assert status == 409
    for holder in ("route free (active)", "route gated (its candidate, shadow)"):
        assert holder in refused["error"]["message"]
    status, refused = served.ask("PUT", "/drafters/late", NGRAM)
    assert (status, "load the new weights under a new name" in refused["error"]["message"]) == (409, True)
    assert served.drafters()["late"]["named_by"] == ["route gated (its candidate, shadow)", "route free (active)"][::-1]
    served.write()
    wait_until(lambda: served.unload("late")[0] == 200, what="the end of what named it")
    assert served.server.ready()["policy"]["error"] is None


def huge_head(folder: Path) -> Path:
    """A head's folder whose weight file says that it is far larger than any memory."""
    folder.mkdir()
    shutil.copy(HEAD / "config.json", folder)
    shape = [2**24, 2**20]
    header = json.dumps({"fc.weight": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 2 * shape[0] * shape[1]]}})
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    return folder


def broken_head(folder: Path) -> Path:
    """A head's folder with half of its weight file."""
    folder.mkdir()
    shutil.copy(HEAD / "config.json", folder)
    data = (HEAD / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    return folder


def test_refused_loads_change_nothing(served: Served, tmp_path: Path) -> None:
    """The words are the engine's: types, paths, options, broken files, a head that guesses too little, too much
    memory with the numbers."""
    before, entries = served.drafters(), len(served.log())
    refused: list[tuple[dict[str, Any], str]] = [
        ({"type": "oracle"}, "unknown type 'oracle'; expected one of"),
        ({"type": "eagle3", "path": "/nowhere"}, "/nowhere: no such file or folder"),
        ({"type": "ngram", "options": {"reach": 3}}, "has no option 'reach'"),
        ({"type": "eagle3", "path": str(broken_head(tmp_path / "broken"))}, "broken"),
        ({"type": "eagle3", "path": "house", "options": {"least": 0.99}}, "expected 99% or more"),
        ({"type": "eagle3", "path": str(huge_head(tmp_path / "huge"))}, "MB are left there: "),
    ]
    for body, words in refused:
        status, answer = served.ask("PUT", "/drafters/bad", body | {"reason": "r"})
        assert (status, answer["error"]["code"]) == (422, "drafter_refused"), answer
        assert words in answer["error"]["message"]
    assert served.drafters() == before
    assert len(served.log()) == entries
    assert served.server.ready()["status"] == "ready"


def test_a_name_that_no_route_names_gets_other_weights_at_once(served: Served) -> None:
    """With the ETag of what it replaces, and not without; a failed replacement leaves what was there."""
    first = served.load("swap", NGRAM)
    other = NGRAM | {"options": {"max_n": 9}}
    assert served.ask("PUT", "/drafters/swap", other)[0] == 428
    assert served.ask("PUT", "/drafters/swap", other, '"0123456789ab"')[0] == 412
    assert served.ask("PUT", "/drafters/swap", NGRAM | {"type": "oracle"}, first["etag"])[0] == 422
    assert served.drafters()["swap"] == first
    status, second = served.ask("PUT", "/drafters/swap", other, first["etag"])
    assert status == 200
    assert second["fingerprint"] != first["fingerprint"]
    assert served.answer("swap;k=2")[1]["swap"] > 0
    assert served.ask("DELETE", "/drafters/swap", {"reason": "r"}, first["etag"])[0] == 412
    assert served.unload("swap")[0] == 200
    assert served.ask("DELETE", "/drafters/swap", {"reason": "r"}, first["etag"])[0] == 404


def test_streams_in_flight_go_on_with_the_same_text(served: Served) -> None:
    """A head is loaded and unloaded in the middle of an answer that drafts, and of one that the head drafts for."""
    long: dict[str, Any] = {"max_tokens": 800, "temperature": 0.7, "seed": 3}
    quiet, _ = served.answer("off", **long)
    answers: list[tuple[str, dict[str, int]]] = []
    one = threading.Thread(target=lambda: answers.append(served.answer("ngram;k=2", **long)))
    one.start()
    served.load("guest", {"type": "eagle3", "path": "house", "reason": "r"})
    assert one.is_alive()
    two = threading.Thread(target=lambda: answers.append(served.answer("guest;k=3", **long)))
    two.start()
    running = ("specproxy_engine_sequences", "running")
    wait_until(lambda: served.server.metric(running[0], state=running[1]) == 2, what="the second answer")
    assert served.unload("guest")[0] == 200
    assert two.is_alive()
    one.join()
    two.join()
    assert [text for text, _ in answers] == [quiet, quiet]


def test_an_engine_that_died_has_the_drafters_again(served: Served) -> None:
    """What was loaded is loaded, what was unloaded is not, and answers are what they were."""
    plain, _ = served.answer("off")
    head = served.load("head", {"type": "eagle3", "path": "house", "reason": "r"})
    assert served.unload("prediction")[0] == 200
    pid = served.server.engine_pid
    os.kill(pid, signal.SIGKILL)
    text, drafted = served.answer("head;k=3")
    assert (text, drafted.get("head", 0) > 0) == (plain, True)
    wait_until(lambda: served.server.ready()["status"] == "ready", 30, "readiness")
    assert served.server.engine_pid != pid
    assert served.drafters()["head"] == head
    assert "prediction" not in served.drafters()
    assert served.unload("head")[0] == 200
    served.load("prediction", {"type": "prediction", "reason": "r"})


def test_the_command_line(served: Served) -> None:
    """Load with options, list for people and for machines, refuse with the server's words, unload."""
    done = served.command("load", "wide=ngram", "--option", "max_n=8", "--max-k", "5", "--reason", "longer", "--json")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["max_k"] == 5
    listed = served.command("list", "--json")
    assert "wide" in {item["name"] for item in msgspec.json.decode(listed.stdout)["drafters"]}
    assert "wide" in served.command("list").stdout
    refused = served.command("load", "wide=ngram", "--reason", "again")
    assert (refused.returncode, "If-Match is missing" in refused.stderr) == (1, True)
    unknown = served.command("unload", "narrow", "--reason", "r")
    assert (unknown.returncode, "the server has no drafter narrow; it has: " in unknown.stderr) == (1, True)
    assert served.command("load", "wide", "--reason", "r").returncode == 1
    gone = served.command("unload", "wide", "--reason", "r", "--json")
    assert gone.returncode == 0, gone.stderr
    assert "wide" not in served.drafters()


@pytest.mark.slow
def test_the_next_server_has_what_was_loaded(tmp_path: Path, start_server: Callable[..., RunningServer]) -> None:
    """Policies that name it hold from the start. Where its files are gone, the server starts all the same, drafts
    without it, says what is missing, and lets it go."""
    weights = tmp_path / "weights"
    shutil.copytree(HEAD, weights)
    made = Served(tmp_path, start_server)
    made.run()
    kept = made.load("kept", NGRAM | {"options": {"max_n": 7}})
    made.load("lost", {"type": "eagle3", "path": str(weights), "reason": "r"})
    made.write(free="[kept, lost]")
    wait_until(lambda: made.answer(metadata={"kind": "free"})[1], what="the edit")
    assert made.server.stop() == 0
    shutil.rmtree(weights)
    made.run()
    assert made.drafters()["kept"]["fingerprint"] == kept["fingerprint"]
    lost = made.drafters()["lost"]
    assert (lost["loaded"], str(weights) in lost["problem"]) == (False, True)
    assert set(made.answer(metadata={"kind": "free"})[1]) == {"kept"}
    made.write(free="kept")
    wait_until(lambda: made.unload("lost")[0] == 200, what="the end of what named it")
    assert "lost" not in made.drafters()
    assert made.server.stop() == 0
