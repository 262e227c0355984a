"""The Dockerfile: its targets, its user, what it copies and sets. ``image_by_hand.py`` carries it out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from specproxy.config.load import load_start_config
from tests.deploy.conftest import ROOT
from tests.deploy.dockerfile import chain, last, read_stages, settings

STAGES = read_stages(ROOT / "Dockerfile")
TARGETS = ("cpu", "cuda")
each = pytest.mark.parametrize("target", TARGETS)


def test_each_device_has_a_target() -> None:
    """Both are there, and the one that runs everywhere is what a build without a target makes."""
    assert set(TARGETS) < set(STAGES)
    assert list(STAGES)[-1] == "cpu"


def test_base_images_are_pinned() -> None:
    """Every stage stands on another one or on one exact version."""
    outside = {stage.base for stage in STAGES.values()} - set(STAGES)
    assert len(outside) == 1
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base) for base in outside)


@each
def test_it_runs_as_nobody_special(target: str) -> None:
    """The user is a number, which is what Kubernetes can check, not root, and the one who owns the volumes."""
    instructions = chain(STAGES, target)
    user, _, group = last(instructions, "USER").text.partition(":")
    assert int(user) >= 10_000
    volumes = last(instructions, "VOLUME").words
    assert any(i.text == f"install -d -o {user} -g {group} {' '.join(volumes)}" for i in instructions)


@each
def test_tools_for_building_stay_behind(target: str) -> None:
    """The environment comes from a stage of its own, with torch for the target's device."""
    copied = [i.words for i in STAGES[target].instructions if i.name == "COPY"]
    assert copied == [[f"--from=build-{target}", "/opt/specproxy", "/opt/specproxy"]]
    installs = [i.text for i in chain(STAGES, f"build-{target}") if i.text.startswith("pip install")]
    assert len(installs) == 2
    assert ("TORCH_CPU_INDEX" in installs[0]) == (target == "cpu")
    assert ("[gpu]" in installs[1]) == (target == "cuda")


def test_what_is_copied_is_there() -> None:
    """Every source exists, and .dockerignore lets it through and nothing else."""
    copies = [i.words for stage in STAGES.values() for i in stage.instructions if i.name == "COPY"]
    sources = {source for words in copies if "--from" not in words[0] for source in words[:-1]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)


@each
def test_settings_mean_something(target: str) -> None:
    """Every SPECPROXY_ variable is a setting, and whatever is written lies in a volume."""
    instructions = chain(STAGES, target)
    env = settings(instructions)
    config = load_start_config(env={name: value for name, value in env.items() if name.startswith("SPECPROXY_")})
    assert (config.server.host, config.model.device) == ("0.0.0.0", target)
    volumes = [Path(volume) for volume in last(instructions, "VOLUME").words]
    kept = [config.state.path, *(value for name, value in env.items() if name.endswith(("_HOME", "_DIR")))]
    assert len(kept) == 5
    assert all(any(Path(path).is_relative_to(volume) for volume in volumes) for path in kept)
    assert str(config.server.port) in last(instructions, "EXPOSE").words
    assert str(config.admin.port) in last(instructions, "EXPOSE").words


@each
def test_the_check_follows_the_port(target: str) -> None:
    """The image's health check asks the port that the environment sets; that its path exists, test_scrape shows."""
    check = last(chain(STAGES, target), "HEALTHCHECK").text
    assert '{os.environ[\\"SPECPROXY_PORT\\"]}/health' in check
