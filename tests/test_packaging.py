"""What is in the repository and in the wheel, and how the kernels are reached."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_TRACKED_MIB = 58

BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    """The parsed pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the tree, so that no build leftovers land in it."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kernels", copy / "kernels", ignore=ignore)
    shutil.copytree(ROOT / "specproxy", copy / "specproxy", symlinks=True, ignore=ignore)
    done = subprocess.run([sys.executable, "-c", BUILD, "."], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return zipfile.ZipFile(copy / done.stdout.split()[-1])


def tracked() -> list[Path]:
    """Files under version control; skips where this is no git checkout."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_kernels_are_reached_through_the_link() -> None:
    """The folder has no __init__.py, and the link inside the package leads to it."""
    link = ROOT / "specproxy" / "kernels"
    assert link.is_symlink()
    assert link.readlink() == Path("../kernels")
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "tests" / "kernels").exists()


def test_a_package_called_kernels_cannot_be_found_by_transformers() -> None:
    """With the repository as working directory, transformers finds no package `kernels` and imports cleanly."""
    code = "import importlib.util as u, transformers.utils as t; print(t.is_kernels_available())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False" or "kernels" in installed_packages(), done.stderr[-1000:]


def installed_packages() -> set[str]:
    """Names of the distributions of this environment."""
    from importlib.metadata import distributions

    return {dist.metadata["Name"].lower() for dist in distributions()}


def test_ruff_refuses_to_import_kernels_directly(tmp_path: Path) -> None:
    """The lint rules report `import kernels` and `from kernels import x`, and accept the right spelling."""
    source = tmp_path / "planted.py"
    source.write_text(
        '"""Planted."""\n\nimport kernels.walk\nfrom kernels import walk\nimport specproxy.kernels.walk\n'
    )
    command = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "--select", "TID251"]
    done = subprocess.run(
        [*command, "--output-format", "json", str(source)], capture_output=True, text=True, check=False
    )
    assert [fault["location"]["row"] for fault in json.loads(done.stdout)] == [3, 4]


def test_tracked_files_stay_small() -> None:
    """Everything under version control together is at most 58 MiB, so that clones and images stay light."""
    size = sum(file.stat().st_size for file in tracked() if file.is_file() and not file.is_symlink())
    assert size / 2**20 <= MAX_TRACKED_MIB


def test_weights_are_tracked_once() -> None:
    """No two tracked files of more than a megabyte have the same content."""
    large = [file for file in tracked() if file.is_file() and not file.is_symlink() and file.stat().st_size > 2**20]
    contents = [file.read_bytes() for file in large]
    assert len(set(contents)) == len(contents)


def test_the_wheel_holds_models_prompts_and_kernels(wheel: zipfile.ZipFile) -> None:
    """A wheel serves the house model without the repository: weights, tokenizers, prompt mix and kernel files."""
    names = set(wheel.namelist())
    for needed in (
        "specproxy/py.typed",
        "specproxy/models/house/target/model.safetensors",
        "specproxy/models/house/target/tokenizer.json",
        "specproxy/models/house/target/chat_template.jinja",
        "specproxy/models/house/draft/model.safetensors",
        "specproxy/bench/data/mini.jsonl",
        "specproxy/models/cpp/step.cpp",
        "specproxy/models/cpp/attention.h",
        "specproxy/models/cpp/products.h",
    ):
        assert needed in names
    sources = {f"specproxy/kernels/{file.name}" for file in (ROOT / "kernels").glob("*.py")}
    assert sources
    assert sources <= names


def test_the_wheel_has_one_top_level_package(wheel: zipfile.ZipFile) -> None:
    """Nothing but specproxy and its metadata is installed: no `kernels`, no `tests`, no `policies`."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"specproxy"}


def test_every_dependency_is_pinned(project: dict[str, dict[str, object]]) -> None:
    """constraints.txt has a version for each package that pyproject.toml names, but triton, which torch pins."""
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *(item for extra in extras.values() for item in extra)]
    pinned = {canonical(line.partition("==")[0]) for line in pins()}
    assert {canonical(name_of(text)) for text in wanted} - pinned == {"triton"}


def test_pins_are_exact_and_platform_neutral() -> None:
    """Each pin is one exact version without a local part, a marker or a path."""
    for line in pins():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
        assert not line.lower().startswith(("nvidia", "triton"))


def test_pins_satisfy_the_declared_floors(project: dict[str, dict[str, list[str]]]) -> None:
    """No tested version lies outside the range that pyproject.toml declares; triton's is in the range itself."""
    from packaging.requirements import Requirement

    versions = {canonical(name): version for name, _, version in (line.partition("==") for line in pins())}
    for text in [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        if requirement.name == "triton":
            continue
        assert requirement.specifier.contains(versions[canonical(requirement.name)]), text


def test_triton_is_for_linux_only(project: dict[str, dict[str, dict[str, list[str]]]]) -> None:
    """triton is asked for beside a GPU and for development alone, and only on Linux."""
    extras = project["project"]["optional-dependencies"]
    asked = [item for extra in extras.values() for item in extra if name_of(item) == "triton"]
    assert len(asked) == 2
    assert all(item.endswith("sys_platform == 'linux'") for item in asked)
    assert not any(name_of(item) == "triton" for item in project["project"]["dependencies"])


def pins() -> list[str]:
    """The lines of constraints.txt that pin something."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def name_of(requirement: str) -> str:
    """``uvloop>=0.21; …`` -> ``uvloop``."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return found.group()


def canonical(name: str) -> str:
    """A distribution's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()
