"""Policy sets written on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specproxy.policy.catalogue import Catalogue, DrafterSpec
from specproxy.policy.facts import Facts, extract_facts
from specproxy.policy.policy import PolicySet
from specproxy.policy.reading import Findings

WriteSet = Callable[..., Path]
LoadSet = Callable[..., PolicySet]
FindAll = Callable[..., Findings]
MakeFacts = Callable[..., Facts]


@pytest.fixture
def catalogue() -> Catalogue:
    """Three drafters as an engine reports them, and one upstream."""
    return Catalogue(
        drafters=(
            DrafterSpec("prediction", "prediction", 63, None, "p1"),
            DrafterSpec("ngram", "ngram", 16, None, "n1"),
            DrafterSpec("draft_model", "draft_model", 8, 1024, "d1"),
        ),
        upstreams=("vllm-a",),
        exactness="bitwise",
        max_model_len=2048,
    )


@pytest.fixture
def write_set(tmp_path: Path) -> WriteSet:
    """Write files (name without ending = content) into a fresh directory; ``_`` in a name stands for ``-``."""

    def write(*contents: str, **files: str) -> Path:
        folder = tmp_path / "policies"
        folder.mkdir(exist_ok=True)
        for index, content in enumerate(contents):
            (folder / f"{index}0.yaml").write_text(content)
        for name, content in files.items():
            (folder / f"{name.replace('_', '-')}.yaml").write_text(content)
        return folder

    return write


@pytest.fixture
def load_set(write_set: WriteSet, catalogue: Catalogue) -> LoadSet:
    """A set from the contents of its files."""

    def load(*contents: str, **files: str) -> PolicySet:
        return PolicySet.load(write_set(*contents, **files), catalogue)

    return load


@pytest.fixture
def find_all(write_set: WriteSet, catalogue: Catalogue) -> FindAll:
    """Everything that is found in a set, paths cut to file names."""

    def find(*contents: str, using: Catalogue | None = None, **files: str) -> Findings:
        folder = write_set(*contents, **files)
        findings = PolicySet.read(folder, using or catalogue)[1]
        for items in (findings.errors, findings.warnings, findings.notes):
            items[:] = [_short(problem, folder) for problem in items]
        return findings

    return find


def _short(problem: Any, folder: Path) -> Any:
    return str(problem).replace(f"{folder}/", "")


@pytest.fixture
def facts_of() -> MakeFacts:
    """Facts of a chat request with one user message and whatever else the body says."""

    def make(text: str = "hello", headers: dict[str, str] | None = None, **body: Any) -> Facts:
        around = {name: body.pop(name) for name in ("api_key", "prompt_tokens", "load") if name in body}
        path = body.pop("path", "/v1/chat/completions")
        content = {"model": "house", "messages": [{"role": "user", "content": text}]} | body
        return extract_facts(path, headers or {}, content, **around)

    return make
