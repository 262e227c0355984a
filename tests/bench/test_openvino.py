"""OpenVINO GenAI beside us: the protocol with its process, and the process itself where it is installed."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from specproxy.bench.arms import Arm
from specproxy.bench.openvino_peer import (
    OpenVinoPeer,
    Setup,
    converted,
    exchange,
    identity,
    missing,
    openvino_arms,
    openvino_peer,
    start,
)
from specproxy.bench.openvino_worker import serve
from specproxy.bench.records import Record
from specproxy.cli.main import main
from specproxy.errors import StartError

ECHO = """
import json, sys
print(json.dumps({"ready": {"openvino_genai": "1"}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["way"] == "lookup":
        print("no JSON", flush=True)
    elif asked["way"] == "draft":
        break
    else:
        said = {"ids": asked["ids"][: asked["max_tokens"]], "ended": True, "ttft_s": 0.25, "total_s": 0.5}
        print(json.dumps(said), flush=True)
"""
RECORD = Record("a", "chat", {"messages": [{"role": "user", "content": "hello"}]}, seed=1)


class WordTokenizer:
    """A tokenizer whose ids are lengths of words."""

    def apply_chat_template(self, messages: list[dict[str, str]], **how: bool) -> dict[str, list[int]]:
        """Ids of the last message's words."""
        assert how == {"add_generation_prompt": True, "return_dict": True}
        return {"input_ids": [len(word) for word in messages[-1]["content"].split()]}

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """The ids as text."""
        assert skip_special_tokens
        return " ".join(map(str, ids))


def test_arms_have_a_name_each() -> None:
    """Three ways, two where no draft model is declared; all of them are other libraries'."""
    assert [arm.name for arm in openvino_arms(draft=True)] == ["openvino", "openvino-draft", "openvino-lookup"]
    assert [arm.name for arm in openvino_arms(draft=False)] == ["openvino", "openvino-lookup"]
    assert all(arm.peer for arm in openvino_arms(draft=True))


async def test_answers_come_over_the_pipe() -> None:
    """A prompt goes out as ids; ids, times and the reason for the end come back. What is no answer is an error, and so
    is every answer after the process ended."""
    process = await start([sys.executable, "-c", ECHO])
    try:
        hello = await exchange(process, None)
        peer = OpenVinoPeer(process, WordTokenizer(), hello["ready"])
        assert peer.facts == {"openvino_genai": "1"}
        answer = await peer.answer(RECORD, Arm("openvino", None, peer=True), max_tokens=4)
        assert (answer.token_ids, answer.text, answer.finish_reason) == ([5], "5", "stop")
        assert (answer.tokens, answer.ttft_s, answer.total_s, answer.error) == (1, 0.25, 0.5, None)
        odd = await peer.answer(RECORD, Arm("openvino-lookup", None, peer=True), max_tokens=4)
        assert "expected a line of JSON" in (odd.error or "")
        for name in ("openvino-draft", "openvino"):
            gone = await peer.answer(RECORD, Arm(name, None, peer=True), max_tokens=4)
            assert gone.error == "OpenVINO: the worker ended"
    finally:
        await process.wait()


class Ways:
    """Answers with its arguments; fails where the prompt is empty."""

    def answer(self, way: str, ids: list[int], max_tokens: int) -> dict[str, Any]:
        """What was asked."""
        if not ids:
            raise RuntimeError("empty prompt")
        return {"ids": [*ids, max_tokens], "way": way}


def test_the_worker_survives_what_it_cannot_answer() -> None:
    """A request that fails, or is none, is answered with its problem, in its place; the next one is answered."""
    requests = io.StringIO(
        """{"way": "plain", "ids": [], "max_tokens": 2}
        [
        {}
        {"way": "plain", "ids": [1], "max_tokens": 2}"""
    )
    answers = io.StringIO()
    serve(Ways(), requests, answers)
    problems = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert problems[0] == {"problem": "RuntimeError: empty prompt"}
    assert problems[1]["problem"].startswith("JSONDecodeError")
    assert problems[2] == {"problem": "KeyError: 'way'"}
    assert problems[3] == {"ids": [1, 2], "way": "plain"}


def make_setup(python: str, folder: Path) -> Setup:
    """A model folder with one file, an empty cache."""
    model = folder / "target"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return Setup(python=python, target=model, draft=None, cache=folder / "cache", threads=1)


async def test_a_conversion_is_kept_and_made_anew_for_another_model(tmp_path: Path) -> None:
    """What is in the cache under the model's identity is taken; another file makes another identity."""
    setup = make_setup("/nowhere/python", tmp_path)
    folder = setup.cache / f"target-{identity(setup.target)}"
    folder.mkdir(parents=True)
    (folder / "openvino_model.xml").write_text("<net/>")
    assert await converted(setup, setup.target, print) == folder
    (setup.target / "model.safetensors").write_text("x")
    assert identity(setup.target) not in folder.name


async def test_a_python_without_optimum_is_one_message(tmp_path: Path) -> None:
    """Where the models cannot be converted, the message says what failed, what to install and the other way."""
    if util.find_spec("optimum") is not None:
        pytest.skip("optimum is installed here, so its absence cannot be tried")
    setup = make_setup(sys.executable, tmp_path)
    with pytest.raises(StartError, match="No module named 'optimum'") as caught:
        await converted(setup, setup.target, lambda what: None)
    assert "pip install openvino-genai optimum-intel" in str(caught.value)
    assert "--openvino-python" in str(caught.value)
    assert not list(setup.cache.iterdir())


async def test_a_worker_without_the_library_says_so(tmp_path: Path) -> None:
    """The worker starts by file name in any Python, finds nothing of ours in its way, and reports what is missing."""
    if util.find_spec("openvino_genai") is not None:
        pytest.skip("openvino_genai is installed here, so its absence cannot be tried")
    setup = make_setup(sys.executable, tmp_path)
    folder = setup.cache / f"target-{identity(setup.target)}"
    folder.mkdir(parents=True)
    (folder / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(StartError, match="openvino_genai cannot be imported: No module named 'openvino"):
        async with openvino_peer(setup, lambda what: None):
            pass


async def test_a_program_that_is_not_there_is_named() -> None:
    """A wrong --openvino-python ends with its path."""
    with pytest.raises(StartError, match="--openvino-python: /nowhere/python"):
        await start(["/nowhere/python"])
    assert "/x/python needs OpenVINO GenAI" in str(missing("/x/python", "why"))


@pytest.mark.parametrize(
    "flags", [("--openvino", "--url", "http://127.0.0.1:9/v1"), ("--openvino", "--concurrency", "2")]
)
def test_flags_that_do_not_go_together(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """OpenVINO answers one prompt at a time, beside servers of our own."""
    assert main(["bench", *flags]) == 1
    assert capsys.readouterr().err.count("leave --") == 1


@pytest.mark.timeout(600)
def test_openvino_answers_the_same_prompts(run_bench: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    """Where the library is, its three ways answer as many tokens as plain decoding, beside our arms."""
    python = os.environ.get("OPENVINO_PYTHON") or (sys.executable if util.find_spec("openvino_genai") else None)
    if python is None:
        pytest.skip("openvino_genai is not installed here; name a Python that has it in OPENVINO_PYTHON")
    arguments = ("--categories", "json", "--limit", "1", "--max-tokens", "16", "--no-numeric", "--json")
    code, report, shown = run_bench("--openvino-python", python, *arguments)
    assert code == 0, shown
    arms = {entry["arm"]: entry for entry in report["categories"][0]["arms"]}
    assert list(arms) == ["off", "policy", "openvino", "openvino-draft", "openvino-lookup"]
    assert {entry["failed"] for entry in arms.values()} == {0}
    assert len({entry["tokens"] for entry in arms.values()}) == 1
    assert report["software"]["openvino_genai"]
