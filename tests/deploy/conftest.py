"""Programs that judge what is in deploy/, and a server that a real Prometheus scrapes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

POLICY = """\
version: 1
defaults:
  hold_out: 0.5
  gate: {mode: auto}
  audit: {fraction: 1.0, budget: 1.0}
  shadow: {fraction: 1.0, budget: 1.0}
routes:
  - name: json
    match: {metadata: {category: json}}
    speculate: {drafters: ngram, k: 4}
  - name: far
    match: {metadata: {category: far}}
    backend: [far, engine]
  - name: default
"""
"""Half of the conversations are plain, everything is audited, and an edit of ``k`` makes a candidate in shadow. One
route has an upstream before the engine."""


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips where a program is missing; not in CI, where the test must then fail."""
    missing = [name for name in programs if shutil.which(name, path=PROGRAMS) is None]
    return pytest.mark.skipif(
        bool(missing) and not os.environ.get("CI"),
        reason=f"not here: {', '.join(missing)}; .ci/run names the packages, tests/deploy/requirements.txt the rest",
    )


def run(program: str, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program in the repository; fails where there is none."""
    found = shutil.which(program, path=PROGRAMS)
    assert found is not None, f"CI must have {program}"
    return subprocess.run(
        [found, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def passed(done: subprocess.CompletedProcess[str]) -> str:
    """What a program printed; fails with it where the program found a fault."""
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return printed


def read_yaml(file: Path) -> Any:
    """A YAML file, its anchors resolved."""
    return YAML(typ="safe", pure=True).load(file)


KUBERNETES = DEPLOY / "kubernetes" / "sidecar.yaml"
DOCUMENTS: dict[str, Any] = {found["kind"]: found for found in YAML(typ="safe", pure=True).load_all(KUBERNETES)}
POD: dict[str, Any] = DOCUMENTS["StatefulSet"]["spec"]["template"]["spec"]
SIDECAR: dict[str, Any] = POD["initContainers"][0]


@dataclass
class Prometheus:
    """A running Prometheus."""

    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        """The data that its API answers with; fails where it answers with an error."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10, trust_env=False).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found


@pytest.fixture(scope="session")
def start_prometheus(
    tmp_path_factory: pytest.TempPathFactory, eventually: Callable[..., None]
) -> Iterator[Callable[[str], Prometheus]]:
    """Starts Prometheus with our configuration and rules, in quick time, on the server at ``host:port``."""
    with contextlib.ExitStack() as stack:

        def start(target: str) -> Prometheus:
            folder = tmp_path_factory.mktemp("prometheus")
            config = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")
            (scrape,) = (job for job in config["scrape_configs"] if job["job_name"] == "specproxy")
            scrape["static_configs"][0]["targets"] = [target]
            config |= {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(DEPLOY / "prometheus" / file) for file in config["rule_files"]],
                "scrape_configs": [scrape],
            }
            YAML(typ="safe", pure=True).dump(config, folder / "prometheus.yml")
            with socket.create_server(("127.0.0.1", 0)) as free:
                address = f"127.0.0.1:{free.getsockname()[1]}"
            program = shutil.which("prometheus", path=PROGRAMS)
            assert program is not None, "CI must have prometheus"
            command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
            log = stack.enter_context((folder / "log").open("wb"))
            process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)

            def ready() -> bool:
                assert process.poll() is None, (folder / "log").read_text()
                with contextlib.suppress(httpx.TransportError):
                    return httpx.get(f"http://{address}/-/ready", trust_env=False).status_code == 200
                return False

            eventually(ready, timeout_s=30, what="Prometheus")
            return Prometheus(f"http://{address}")

        yield start
