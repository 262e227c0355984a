"""Starts that must fail: one clear message, a non-zero exit, nothing left running; and what a start may import."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from specproxy.cli.main import main

REPOSITORY = Path(__file__).parent.parent.parent


def serve(*flags: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
    """Run ``specproxy serve`` to its end."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPECPROXY_")}
    command = [sys.executable, "-m", "specproxy", "serve", *flags]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=env | {"HF_HUB_OFFLINE": "1"},
        timeout=timeout_s,
        check=False,
    )


def test_a_listener_that_others_can_reach_needs_keys() -> None:
    """Refused before anything is loaded, saying what to do."""
    done = serve("--host", "0.0.0.0", "--port", "0", timeout_s=20)
    assert done.returncode != 0
    assert "0.0.0.0" in done.stderr
    assert "keys" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_said_before_anything_is_loaded() -> None:
    """With the port in the message."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve("--port", str(port), timeout_s=20)
    assert done.returncode != 0
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_there_is_one_clear_message() -> None:
    """The engine's own words, and no traceback."""
    done = serve("--port", "0", "--model", "/no/such/model")
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("specproxy: /no/such/model")
    assert "Traceback" not in done.stderr


def test_a_broken_policy_set_is_refused_with_file_and_line(tmp_path: Path) -> None:
    """There is no older set to fall back on."""
    (tmp_path / "10-broken.yaml").write_text("version: 1\nroutes:\n  - name: default\n    speculat: off\n")
    done = serve("--port", "0", "--policies", str(tmp_path), timeout_s=30)
    assert done.returncode != 0
    assert "10-broken.yaml:4" in done.stderr
    assert "speculate" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_setting_is_refused() -> None:
    """No option is accepted and ignored."""
    done = serve("--port", "0", "--set", "server.max_que=3", timeout_s=20)
    assert done.returncode != 0
    assert "server.max_queue" in done.stderr


def test_the_engine_never_outlives_the_server(
    start_server: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    """Not even a server that is killed while it loads: a second engine would find the memory taken."""
    server = start_server(until_ready=False)
    (engine,) = psutil.Process(server.process.pid).children()
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    eventually(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 5, "the engine's end")


def test_sigterm_while_loading_stops_at_once(start_server: Callable[..., Any]) -> None:
    """Nothing is in flight, so there is nothing to wait for; meanwhile requests and /ready get a 503."""
    server = start_server(until_ready=False)
    assert server.get("/ready").status_code == 503
    assert server.ready()["status"] == "loading"
    early = server.get("/v1/models")
    assert early.status_code == 503
    assert early.json()["error"]["code"] == "engine_unavailable"
    assert early.headers["retry-after"]
    assert server.stop() == 0


def modules_after(code: str) -> set[str]:
    """Names of all modules that are imported once ``code`` has run in a fresh process."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("heavy", ["torch", "transformers", "specproxy.engine"])
def test_the_server_never_imports(heavy: str) -> None:
    """The engine has a process of its own for that."""
    assert heavy not in modules_after("import specproxy.server.main, specproxy.cli.serve")


def test_the_help_imports_nothing_slow() -> None:
    """``specproxy --help`` must answer at once."""
    code = "import contextlib, io\nfrom specproxy.cli.main import main\nimport sys\n"
    code += "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n    main(['--help'])"
    assert not modules_after(code) & {"aiohttp", "torch", "asyncio", "tokenizers", "rich", "specproxy.server.main"}


def test_the_engine_is_started_before_the_slow_imports() -> None:
    """What ``serve`` needs until then is light."""
    assert not modules_after("import specproxy.cli.serve") & {"aiohttp", "tokenizers", "prometheus_client", "rich"}


def test_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """Usage errors exit with 2, as everywhere."""
    with pytest.raises(SystemExit) as left:
        main(["server"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("serve", "policy", "bench"))


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """For bug reports."""
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("specproxy 0.")
