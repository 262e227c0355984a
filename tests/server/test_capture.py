"""Answers kept for training by a server: which, where, in what form, and never more than that."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from specproxy.server.model_folder import local_folder
from specproxy.text.template import ChatTemplate
from specproxy.text.tokenizer import Tokenizer
from specproxy.train.records import Limits, read_tasks
from tests.server.test_start import serve

Body = Callable[..., dict[str, Any]]
Kept = Callable[[int], list[dict[str, Any]]]
KEY, KEY_ID = "sk-secret-of-capture", "key-id-of-alice"
WRITTEN = "specproxy_captured_records_total"

POLICY = """\
version: 1
routes:
  - {name: kept, match: {header: {x-test: kept}}, capture: on}
  - {name: hurried, match: {header: {x-test: hurried}}, capture: on, limits: {timeout_s: 0.3}}
  - {name: apart, match: {header: {x-test: apart}}, capture: {dir: OWN, max_mb: 1}}
  - {name: rest}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policies and keys of the server."""
    folder = tmp_path_factory.mktemp("capture")
    (folder / "policies").mkdir()
    (folder / "policies" / "all.yaml").write_text(POLICY.replace("OWN", str(folder / "own-answers")))
    (folder / "keys.txt").write_text(f"{KEY_ID}: {hashlib.sha256(KEY.encode()).hexdigest()}\n")
    return folder


@pytest.fixture(scope="module")
def own(folder: Path, start_server: Callable[..., Any]) -> Any:
    """A server that captures into a directory that was not there, 1 MiB at most."""
    flags = ("--policies", str(folder / "policies"), "--keys-file", str(folder / "keys.txt"))
    env = {"SPECPROXY_CAPTURE": str(folder / "made" / "answers"), "SPECPROXY_CAPTURE__MAX_MB": "1"}
    return start_server(*flags, "--set", "model.max_sequences=64", env=env)


@pytest.fixture
def http(own: Any) -> Iterator[httpx.Client]:
    """Plain HTTP with the key, to the route that captures."""
    headers = {"Authorization": f"Bearer {KEY}", "x-test": "kept"}
    with httpx.Client(base_url=own.base_url, timeout=60, headers=headers) as one:
        yield one


@pytest.fixture
def answers(folder: Path) -> Path:
    """The directory, emptied."""
    answers = folder / "made" / "answers"
    for file in answers.iterdir():
        file.unlink()
    return answers


@pytest.fixture
def kept(own: Any, answers: Path, eventually: Callable[..., None]) -> Kept:
    """Waits until that many records were written since the test began; all that are there."""
    before = own.metric(WRITTEN)

    def wait(count: int) -> list[dict[str, Any]]:
        eventually(lambda: own.metric(WRITTEN) >= before + count, 10, f"{count} records")
        return read(answers)

    return wait


def read(folder: Path) -> list[dict[str, Any]]:
    """Every record of a directory, in order."""
    return [json.loads(line) for file in sorted(folder.iterdir()) for line in file.read_text().splitlines()]


def test_an_answer_is_kept_as_the_model_read_and_said_it(http: httpx.Client, chat_body: Body, kept: Kept) -> None:
    """With all that it depends on; a stream leaves the same record as a whole answer, each choice one."""
    parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "you."}]
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": parts, "name": "Alice-Name"}]
    body = chat_body(messages=turns, n=2, stop=["zebra"], top_k=40, return_token_ids=True)
    whole = http.post("/chat/completions", json=body).json()
    http.post("/chat/completions", json=body | {"stream": True}).read()
    records = kept(4)
    for record, choice in zip(records, whole["choices"], strict=False):
        asked = [turns[0], {"role": "user", "content": "Hello, \nyou."}]
        assert record["messages"] == [*asked, {"role": "assistant", "content": choice["message"]["content"]}]
        assert record["prompt_tokens"] == whole["prompt_token_ids"]
        assert record["answer_tokens"] == choice["token_ids"]
        assert record["finish_reason"] == choice["finish_reason"]
        assert (record["seed"], record["choice"], record["stop"]) == (7, choice["index"], ["zebra"])
        assert (record["params"]["temperature"], record["params"]["top_k"]) == (0.8, 40)
        assert (record["model"], record["route"]) == ("house", "kept")
        assert record["revision"] == whole["specproxy"]["policy"]
        assert record["fingerprint"] == whole["system_fingerprint"]
    assert [r | {"time": ""} for r in records[:2]] == [r | {"time": ""} for r in records[2:]]


def test_training_reads_the_files_as_they_are(http: httpx.Client, chat_body: Body, kept: Kept, answers: Path) -> None:
    """Chats and completions, with the prompts that the target got, token by token."""
    two = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Yes."}]
    http.post("/chat/completions", json=chat_body())
    http.post("/chat/completions", json=chat_body(messages=[*two, {"role": "user", "content": "Two?"}]))
    http.post("/chat/completions", json=chat_body(messages=two, continue_final_message=True))
    for prompt in ("Once upon a time", [5, 6, 7]):
        http.post("/completions", json={"model": "house", "prompt": prompt, "max_tokens": 8})
    records = kept(5)
    house = local_folder("house")
    assert house is not None
    tasks = read_tasks(sorted(answers.iterdir()), Tokenizer.load(house), ChatTemplate.load(house), Limits())
    for place in (0, 1, 3, 4):
        assert list(tasks[place].ids) == records[place]["prompt_tokens"]
        assert tasks[place].answer in (None, tuple(records[place]["answer_tokens"]))
    assert records[2]["messages"][-1]["content"].startswith("Yes.")
    assert len(records[2]["messages"]) == 2
    assert [task.answer for task in tasks[3:]] == [tuple(record["answer_tokens"]) for record in records[3:]]
    assert [record.get("prompt") for record in records[3:]] == ["Once upon a time", None]
    assert all(record["answer"] for record in records[3:])


def test_a_route_may_have_a_directory_of_its_own(
    http: httpx.Client, own: Any, chat_body: Body, folder: Path, answers: Path, eventually: Callable[..., None]
) -> None:
    """What it answers goes there, and nowhere else; the directory is private."""
    before = own.metric(WRITTEN)
    http.post("/chat/completions", json=chat_body(), headers={"x-test": "apart"})
    eventually(lambda: own.metric(WRITTEN) >= before + 1, 10, "the record")
    apart = folder / "own-answers"
    assert [record["route"] for record in read(apart)] == ["apart"]
    assert read(answers) == []
    assert apart.stat().st_mode & 0o777 == 0o700


def test_the_start_says_what_is_kept_where(own: Any, answers: Path) -> None:
    """With the routes, so that nobody captures unawares."""
    assert own.events("ready")[0]["capture"] == f"{answers} · up to 1 MiB · routes: kept, hurried"


def test_only_what_may_be_kept_is(http: httpx.Client, own: Any, chat_body: Body, kept: Kept) -> None:
    """Not other routes, not requests that stay out, fail, are refused or are left by their client."""
    long = chat_body(max_tokens=1900, ignore_eos=True)
    assert http.post("/chat/completions", json=chat_body(), headers={"x-test": "other"}).status_code == 200
    for value in ("1", "false", ""):
        asked = http.post("/chat/completions", json=chat_body(), headers={"X-SpecProxy-No-Capture": value})
        assert asked.status_code == 200
    assert http.post("/chat/completions", json=long, headers={"x-test": "hurried"}).status_code == 504
    with http.stream("POST", "/chat/completions", json=long | {"stream": True}) as response:
        next(response.iter_bytes())
    assert http.post("/chat/completions", json=chat_body(temperature=9)).status_code == 400
    assert http.post("/completions", json={"model": "house", "prompt": "a", "max_tokens": 0}).status_code == 200
    with pytest.raises(httpx.RemoteProtocolError):
        http.post("/chat/completions", json=long | {"stream": True}, headers={"x-test": "hurried"})
    assert http.post("/chat/completions", json=chat_body(seed=1234)).status_code == 200
    assert [record["seed"] for record in kept(1)] == [1234]
    assert own.metric("specproxy_capture_dropped_records_total") == 0


def test_files_are_private_and_hold_no_secrets(http: httpx.Client, chat_body: Body, kept: Kept, answers: Path) -> None:
    """Modes 0700 and 0600; no key, no id of one, no header, no user, no metadata."""
    secret = {name: f"secret-{name}" for name in ("user", "safety_identifier", "prompt_cache_key", "cache_salt")}
    messages = [{"role": "user", "content": "Hello.", "name": "secret-name", "x-other": "secret-other"}]
    body = chat_body(messages=messages, metadata={"team": "secret-metadata"}, **secret)
    headers = {"x-request-id": "secret-id", "x-other": "secret-header", "Cookie": "secret-cookie"}
    assert http.post("/chat/completions", json=body, headers=headers).status_code == 200
    assert len(kept(1)) == 1
    (file,) = answers.iterdir()
    assert stat.S_IMODE(answers.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert "Hello." in text
    for word in (KEY, KEY_ID, "secret", "Bearer", "127.0.0.1"):
        assert word not in text


def test_a_full_directory_goes_on_with_the_newest(http: httpx.Client, kept: Kept, answers: Path) -> None:
    """Files of an eighth of the limit; the oldest records are gone, the last is there, all can be read."""
    body = {"model": "house", "prompt": "a lot of text, " * 400, "max_tokens": 1, "n": 60, "seed": 0}
    for seed in (1, 2):
        assert http.post("/completions", json=body | {"seed": seed}).status_code == 200
    records = kept(120)
    sizes = [file.stat().st_size for file in answers.iterdir()]
    assert 6 <= len(sizes) <= 8
    assert max(sizes) <= 2**17
    assert sum(sizes) <= 2**20
    assert (records[-1]["seed"], records[-1]["choice"]) == (2, 59)
    assert (1, 0) not in [(record["seed"], record["choice"]) for record in records]


def test_a_directory_that_goes_away_disturbs_no_answer(
    own: Any, http: httpx.Client, chat_body: Body, kept: Kept, answers: Path, eventually: Callable[..., None]
) -> None:
    """The loss is said once and counted; when it is back, so are the records."""
    shutil.rmtree(answers)
    for _ in range(2):
        assert http.post("/chat/completions", json=chat_body()).status_code == 200
    eventually(lambda: own.metric("specproxy_capture_dropped_records_total", reason="error") == 2, 10, "the loss")
    assert len(own.events("captured answers are not written; said once, then counted")) == 1
    answers.mkdir(mode=0o700)
    assert http.post("/chat/completions", json=chat_body()).status_code == 200
    assert len(kept(1)) == 1


def test_the_end_of_the_server_writes_what_waits(own: Any, http: httpx.Client, chat_body: Body, answers: Path) -> None:
    """Every answer that a client has got is on the disk."""
    for seed in range(5):
        http.post("/chat/completions", json=chat_body(seed=seed, max_tokens=1))
    assert own.stop() == 0
    assert [record["seed"] for record in read(answers)] == list(range(5))


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_a_directory_that_cannot_be_written_is_one_clear_message(tmp_path: Path, kind: str) -> None:
    """Before anything is loaded; also as root, who may write nearly everywhere."""
    file = tmp_path / "file"
    file.touch()
    wanted = file if kind == "a file" else file / "answers"
    done = serve("--port", "0", "--capture", str(wanted), timeout_s=20)
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"specproxy: capture: cannot write to {wanted}: ")
