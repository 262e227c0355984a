"""How OpenVINO GenAI does on the same prompts: plain, with a draft model, with prompt lookup.

It runs in a process of its own (``openvino_worker.py``), with another Python where its libraries do not go with ours,
on models that are converted once and kept. Greedy, batch 1, OpenVINO's own defaults (on a processor with bf16
arithmetic it computes in bf16 whatever the weights are kept in), six tokens drafted at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import Struct

from specproxy.bench import openvino_worker
from specproxy.bench.arms import Arm
from specproxy.bench.client import Answer
from specproxy.bench.records import Record
from specproxy.errors import StartError

WAYS = {"openvino": "plain", "openvino-draft": "draft", "openvino-lookup": "lookup"}
"""Arms, and what the worker calls them."""
DRAFTED = 6
"""Tokens drafted at a time."""
INSTALL = "pip install openvino-genai optimum-intel"
CONVERT_S = 1800.0
"""Seconds that a conversion may take; the house target's takes a quarter of a minute."""
LINE_BYTES = 2**24


def openvino_arms(*, draft: bool) -> list[Arm]:
    """The arms that it adds to a run."""
    return [Arm(name, None, peer=True) for name, way in WAYS.items() if draft or way != "draft"]


class Setup(Struct, frozen=True, kw_only=True):
    """Where everything is, as absolute paths: ``python`` with the libraries, our model folders, ``cache`` for converted
    ones."""

    python: str
    target: Path
    draft: Path | None
    cache: Path
    threads: int


class OpenVinoPeer:
    """A worker at the other end of two pipes; ``openvino_peer`` starts one. ``facts``: what it says of itself."""

    def __init__(self, process: asyncio.subprocess.Process, tokenizer: Any, facts: dict[str, str]) -> None:
        self._process = process
        self._tokenizer = tokenizer
        self.facts = facts

    async def answer(self, record: Record, arm: Arm, *, max_tokens: int) -> Answer:
        """One greedy answer. Its time runs from the ready prompt ids to the last token's id, as for transformers."""
        inputs = self._tokenizer.apply_chat_template(
            record.body["messages"], add_generation_prompt=True, return_dict=True
        )
        request = {"way": WAYS[arm.name], "ids": list(inputs["input_ids"]), "max_tokens": max_tokens}
        said = await exchange(self._process, request)
        if "problem" in said:
            return Answer(error=f"OpenVINO: {said['problem']}")
        ids = said["ids"]
        return Answer(
            tokens=len(ids),
            token_ids=ids,
            text=self._tokenizer.decode(ids, skip_special_tokens=True),
            finish_reason="stop" if said["ended"] else "length",
            ttft_s=said["ttft_s"],
            total_s=said["total_s"],
        )


@asynccontextmanager
async def openvino_peer(setup: Setup, note: Callable[[str], None]) -> AsyncIterator[OpenVinoPeer]:
    """Convert what is not converted yet, start the worker, stop it at the end. Raises StartError."""
    from transformers import AutoTokenizer

    target = await converted(setup, setup.target, note)
    draft = "-" if setup.draft is None else str(await converted(setup, setup.draft, note))
    note("starting OpenVINO GenAI")
    command = [setup.python, str(Path(openvino_worker.__file__)), str(target), draft, str(setup.threads), str(DRAFTED)]
    process = await start(command)
    try:
        hello = await exchange(process, None)
        if "problem" in hello:
            raise missing(setup.python, str(hello["problem"]))
        yield OpenVinoPeer(process, AutoTokenizer.from_pretrained(setup.target), hello["ready"])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def start(command: list[str]) -> asyncio.subprocess.Process:
    """A worker process. Raises StartError where there is no such program."""
    pipe = asyncio.subprocess.PIPE
    try:
        return await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, env=_environment(), limit=LINE_BYTES
        )
    except OSError as error:
        raise StartError(f"--openvino-python: {command[0]}: {error.strerror or error}") from None


def _environment() -> dict[str, str]:
    """Ours, without what would lead another Python to our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


async def exchange(process: asyncio.subprocess.Process, request: dict[str, Any] | None) -> dict[str, Any]:
    """Send a request (``None``: only listen) and read one answer; a worker that ended answers with a problem."""
    if process.stdin is None or process.stdout is None:
        raise ValueError("the worker was started without pipes")
    try:
        if request is not None:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
        line = await process.stdout.readline()
    except ConnectionError:
        line = b""
    if not line:
        return {"problem": "the worker ended"}
    try:
        said = json.loads(line)
    except ValueError:
        return {"problem": f"expected a line of JSON, got {line[:80]!r}"}
    return said if isinstance(said, dict) else {"problem": f"expected an object, got {line[:80]!r}"}


async def converted(setup: Setup, model: Path, note: Callable[[str], None]) -> Path:
    """The model in OpenVINO's format: from the cache, or converted now. Raises StartError."""
    folder = setup.cache / f"{model.name}-{identity(model)}"
    if (folder / "openvino_model.xml").is_file():
        return folder
    note(f"converting {model} for OpenVINO (once)")
    setup.cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=setup.cache, prefix="converting-") as work:
        out = Path(work) / "model"
        # float32 holds every weight as it is; what it computes in is OpenVINO's choice.
        arguments = ["export", "openvino", "--model", str(model), "--task", "text-generation-with-past"]
        command = [setup.python, "-m", "optimum.commands.optimum_cli", *arguments, "--weight-format", "fp32", str(out)]
        code, last = await _run(command, setup.cache)
        if code != 0 or not (out / "openvino_model.xml").is_file():
            raise missing(setup.python, f"{model} could not be converted: {last}")
        try:
            out.replace(folder)
        except OSError:  # another run was faster
            note(f"{folder} is there already")
    return folder


async def _run(command: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and the last line of what was said. It runs in ``folder``: ``-m`` looks for packages where it runs."""
    pipe, merged = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=pipe, stderr=merged, cwd=folder, env=_environment()
        )
    except OSError as error:
        return 1, str(error)
    try:
        async with asyncio.timeout(CONVERT_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return 1, f"no result within {CONVERT_S:.0f} s"
    lines = said.decode(errors="replace").strip().splitlines()
    return process.returncode or 0, lines[-1] if lines else ""


def identity(model: Path) -> str:
    """Names, sizes and times of a model's files, as a short word: another model is converted anew."""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(model.iterdir())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def missing(python: str, problem: str) -> StartError:
    """The message for people."""
    return StartError(
        f"--openvino: {problem}\n{python} needs OpenVINO GenAI and optimum-intel: {INSTALL}; where they do not go "
        "with this environment, install them into another and name its Python with --openvino-python"
    )
