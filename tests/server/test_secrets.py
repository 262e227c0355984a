"""Nothing secret in logs, and no code in weights."""

from __future__ import annotations

import ast
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import structlog

from specproxy.config.schema import LogConfig
from specproxy.server.logs import configure_logs
from tests.conftest import REPOSITORY

KEY, WRONG, ADMIN, IN_ENV = (f"sk-{name}-5b1c9e7d" for name in ("right", "wrong", "admin", "env"))
MARKER = "quetzalcoatl-marker"
SECRETS = (KEY, WRONG, ADMIN, IN_ENV, MARKER)


def test_neither_keys_nor_prompts_are_in_the_log(
    tmp_path: Path, start_server: Callable[..., Any], chat_body: Callable[..., Any]
) -> None:
    """A server at its most talkative, asked well and badly, with right and wrong keys everywhere a client might put
    one: its whole output has none of them, nor a word of a prompt, nor their hashes."""
    file = tmp_path / "keys"
    file.write_text(f"alice: {hashlib.sha256(KEY.encode()).hexdigest()}\n")
    env = {"SPECPROXY_API_KEYS": IN_ENV, "SPECPROXY_ADMIN_KEY": ADMIN}
    flags = ["--keys-file", str(file), "--set", "log.level=debug", "--set", "admin.port=0"]
    own = start_server(*flags, env=env)
    with httpx.Client(base_url=own.url, timeout=60, trust_env=False) as http:
        said = [{"role": "user", "content": f"{MARKER} and then?"}]
        for given in (f"Bearer {KEY}", f"Bearer {IN_ENV}", f"Bearer {WRONG}", WRONG, f"Basic {WRONG}"):
            http.headers["Authorization"] = given
            for more in (
                {},
                {"stream": True},
                {"n": MARKER},
                {"logit_bias": {MARKER: 1}},
                {"tools": [{"type": "function", "function": {"name": MARKER}}]},
                {"response_format": {"type": MARKER}},
            ):
                http.post("/v1/chat/completions", json=chat_body(messages=said, max_tokens=4, user=MARKER, **more))
            http.post("/v1/completions", json={"prompt": MARKER, "max_tokens": 4})
            http.post("/v1/completions", content=f'{{"prompt": "{MARKER}", '.encode())
            http.post(f"/v1/completions?key={KEY}", json={"prompt": MARKER, "max_tokens": 1})
            http.get(f"/v1/models/{MARKER}", headers={"x-request-id": "plain", "x-api-key": WRONG})
    assert len(own.events("request")) > 20, "the log was looked at, and there is one"
    own.stop()
    written = own.log.read_text()
    for secret in (*SECRETS, *(hashlib.sha256(one.encode()).hexdigest() for one in SECRETS)):
        assert secret not in written


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_has_no_values(log_format: Literal["json", "console"]) -> None:
    """What went wrong, and where; not what the variables were, which may be a prompt or a key."""
    stream = io.StringIO()
    configure_logs(LogConfig(format=log_format), stream)
    try:
        _fail(MARKER)
    except ZeroDivisionError:
        structlog.get_logger().exception("it failed")
    finally:
        structlog.reset_defaults()
    assert "ZeroDivisionError" in stream.getvalue()
    assert "_fail" in stream.getvalue()
    assert MARKER not in stream.getvalue()


def _fail(secret: str) -> None:
    held = [secret, MARKER]
    print(len(held) / 0)


def sources() -> Iterator[tuple[str, ast.AST]]:
    """Every file of the package and of the kernels, parsed; but for the bench's peers, which load a model as
    transformers' users do."""
    for folder in ("specproxy", "kernels"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if path.name != "peers.py":
                yield str(path.relative_to(REPOSITORY)), ast.parse(path.read_text())


UNSAFE_MODULES = frozenset({"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"})
UNSAFE_CALLS = frozenset({"eval", "exec", "__import__"})


def faults(tree: ast.AST) -> list[str]:
    """What a source does that could run code out of a file: by line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in UNSAFE_MODULES:
            if node.attr != "UnpicklingError":
                found.append(f"{node.lineno}: {node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNSAFE_MODULES:
            found.append(f"{node.lineno}: from {node.module}")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in UNSAFE_CALLS or name.startswith("torch.hub"):
                found.append(f"{node.lineno}: {name}")
            if name == "torch.load" and given.get("weights_only") != "True":
                found.append(f"{node.lineno}: torch.load without weights_only=True")
            if name.endswith("CausalLM.from_pretrained") and given.get("use_safetensors") != "True":
                found.append(f"{node.lineno}: {name} without use_safetensors=True")
            if given.get("trust_remote_code") == "True" or given.get("allow_pickle") == "True":
                found.append(f"{node.lineno}: {name} trusts what it reads")
            if name.endswith((".send", ".recv")) and "pipe" in name:
                found.append(f"{node.lineno}: {name} pickles")
    return found


def test_no_file_of_weights_can_run_code() -> None:
    """No pickle, no evaluated text, remote code only as the person who starts it says; tensors from safetensors, or
    loaded as weights only."""
    found = {path: wrong for path, tree in sources() if (wrong := faults(tree))}
    assert found == {}
    text = "\n".join(ast.unparse(tree) for _, tree in sources())
    assert text.count("torch.load(") >= 2, "there is something to look at"
    assert "trust_remote_code=trust_remote_code" in text


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.loads(b'')",
        "from pickle import load",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "eval(text)",
        "AutoModelForCausalLM.from_pretrained(path)",
        "AutoConfig.from_pretrained(path, trust_remote_code=True)",
        "np.load(file, allow_pickle=True)",
        "pipe.send(thing)",
    ],
)
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    """Each kind of it."""
    assert faults(ast.parse(code))
