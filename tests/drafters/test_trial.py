"""A head is tried on the target's own text: the reading that works is found, a useless head refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from specproxy.drafters import registry
from specproxy.drafters.trial import try_readings
from specproxy.errors import ConfigError, ModelLoadError
from specproxy.heads.loading import read_head
from specproxy.heads.readings import Overrides, Reading
from specproxy.models.loading import find_model
from tests.support.driver import Driver
from tests.support.engines import HOUSE_HEADS


@pytest.fixture
def told() -> list[str]:
    """What loaders say."""
    return []


@pytest.fixture
def host(assemble_engine: Callable[..., Driver], told: list[str]) -> Any:
    """The house engine's host, whose words are kept."""
    return replace(assemble_engine(HOUSE_HEADS).assembled.host, tell=told.append)


def copy_head(folder: Path, kind: str = "eagle3", **config: Any) -> str:
    """The bundled head with a changed configuration."""
    shutil.copytree(find_model("house", kind), folder / kind)
    file = folder / kind / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return str(folder / kind)


def test_the_bundled_heads_serve_as_they_are(host: Any, told: list[str]) -> None:
    """Every bundled head guesses under its nominal reading."""
    for kind, least in (("eagle3", 0.5), ("mtp", 0.5), ("medusa", 0.2)):
        drafter = registry.load("x", kind, {"path": "house", "least": least}, host)
        assert drafter.needs.hidden
    assert len([line for line in told if "at its first position" in line]) == 3


def test_wrong_layers_are_found_out(host: Any, told: list[str]) -> None:
    """Of two readings the one that guesses clearly better is taken, though the file says the other, and people are
    told. (One layer up or down hardly matters to the small house target, so the wrong reading is further off.)"""
    path = str(find_model("house", "eagle3"))
    wrong = read_head(path, host.target, Overrides((1, 2, 3)))
    right = Reading("every layer one later", (2, 5, 9), False, "a test")
    loaded = replace(wrong, readings=(wrong.readings[0], right))
    assert try_readings("x", loaded, host).spec.hidden == (2, 5, 9)
    assert any("every layer one later" in line and "is used so" in line for line in told)
    assert try_readings("x", replace(wrong, readings=wrong.readings[:1]), host).spec.hidden == (1, 2, 3)


def test_a_wrong_norm_flag_is_found_out(host: Any, told: list[str], tmp_path: Path) -> None:
    """A file that says that the residual is normed, where it is not, is read the other way."""
    path = copy_head(tmp_path, norm_before_residual=True)
    registry.load("x", "eagle3", {"path": path}, host)
    assert any("norm_before_residual false" in line and "is used so" in line for line in told)


def test_a_head_that_guesses_nothing_is_refused(host: Any, tmp_path: Path) -> None:
    """Weights of noise are refused, with the rates of every reading."""
    path = copy_head(tmp_path)
    file = Path(path) / "model.safetensors"
    tensors = load_file(file)
    noise = torch.Generator().manual_seed(3)
    changed = {
        name: torch.randn(t.shape, generator=noise).to(t.dtype) if t.is_floating_point() else t
        for name, t in tensors.items()
    }
    save_file(changed, file)
    match = r"drafters\.x: .* expected 5% or more \(nominal .*every layer one earlier"
    with pytest.raises(ModelLoadError, match=match):
        registry.load("x", "eagle3", {"path": path}, host)
    assert registry.load("x", "eagle3", {"path": path, "least": 0.0}, host).needs.hidden == (2, 5, 9)


def test_the_users_layers_count(host: Any, tmp_path: Path) -> None:
    """Layers given as an option override the file; what is not a list of numbers is a clear error."""
    path = copy_head(tmp_path, eagle_aux_hidden_state_layer_ids=[1, 2, 3])
    assert registry.load("x", "eagle3", {"path": path, "hidden": "2,5,9"}, host).needs.hidden == (2, 5, 9)
    with pytest.raises(ConfigError, match=r"drafters\.x: hidden is 'two'; expected numbers of layers"):
        registry.load("x", "eagle3", {"path": path, "hidden": "two"}, host)


def test_another_kind_of_head_is_named(host: Any) -> None:
    """The type must be the file's."""
    path = str(find_model("house", "medusa"))
    with pytest.raises(ModelLoadError, match=r"drafters\.x: .* holds a head of type medusa; expected eagle3"):
        registry.load("x", "eagle3", {"path": path}, host)
