"""The systemd unit: valid, hardened, and its variables are settings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from specproxy.config.load import load_start_config
from tests.deploy.conftest import DEPLOY, needs, passed, run

UNIT = DEPLOY / "systemd" / "specproxy.service"
TEXT = UNIT.read_text("utf-8")
EXPOSURE = 2.0
"""systemd's own score, 0 to 10, for what a service could do to the machine; most services of a system are at 9."""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with a program that is there, as systemd looks for it."""
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", TEXT, flags=re.MULTILINE))
    return unit


@needs("systemd-analyze")
def test_systemd_understands_it(installed: Path) -> None:
    """No unknown key, no value that is ignored."""
    assert passed(run("systemd-analyze", "verify", "--man=no", installed)).strip() == ""


@needs("systemd-analyze")
def test_it_is_hardened(installed: Path) -> None:
    """By systemd's own count there is little that the service could do to the machine."""
    printed = passed(run("systemd-analyze", "security", "--offline=yes", installed))
    (score,) = re.findall(r"exposure level for \S+: ([\d.]+)", printed)
    assert float(score) < EXPOSURE


def test_its_variables_are_settings() -> None:
    """What the unit sets is known, keys are a credential, and what is written lies in folders that systemd made."""
    folders = {"%S": "/var/lib", "%C": "/var/cache", "%t": "/run", "%d": "/run/credentials/specproxy.service"}
    text = re.sub("|".join(folders), lambda found: folders[found[0]], TEXT)
    env = dict(
        re.findall(
            r"(?:^Environment=| )(\w+)=(\S+)",
            "\n".join(re.findall(r"^Environment=.*", text, re.MULTILINE)),
            re.MULTILINE,
        )
    )
    assert env.pop("SPECPROXY_CONFIG") == "/etc/specproxy/specproxy.yaml"
    config = load_start_config(env={name: value for name, value in env.items() if name.startswith("SPECPROXY_")})
    assert config.keys.file == "/run/credentials/specproxy.service/keys"
    assert (config.state.path, config.admin.socket) == (
        "/var/lib/specproxy/specproxy.db",
        "/run/specproxy/admin.sock",
    )
    caches = [value for name, value in env.items() if name.endswith(("_HOME", "_DIR"))]
    assert len(caches) == 4
    assert all(Path(path).is_relative_to("/var/cache/specproxy") for path in caches)
    for folder in ("State", "Cache", "Runtime"):
        assert f"{folder}Directory=specproxy\n" in TEXT


def test_a_stop_waits_for_the_drain() -> None:
    """systemd waits longer than the server gives to running answers, and kills the server alone at first."""
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)s$", TEXT, re.MULTILINE)
    assert int(seconds) > load_start_config().server.drain_s
    assert "KillMode=mixed\n" in TEXT
