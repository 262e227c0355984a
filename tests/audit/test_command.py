"""``specproxy audit``: a stored answer checked offline, with exit codes for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from specproxy.bundle import AuditBundle, write_bundle
from specproxy.cli.main import main
from tests.support.auditing import Auditing


@pytest.fixture
def bundle(auditing: Callable[..., Auditing], mini: list[dict[str, Any]]) -> AuditBundle:
    """A sampled answer of the house model."""
    return auditing().answers(mini[:1], "ngram", temperature=0.8)[0]


def run(bundle: AuditBundle, folder: Path, *flags: str) -> int:
    """The command's exit code."""
    write_bundle(bundle, folder / "answer.json")
    return main(["audit", str(folder / "answer.json"), "--set", "model.threads=1", *flags])


def test_an_honest_answer_exits_with_0(bundle: AuditBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table for people: whose answer, how it was drawn, by how much logits may differ, the verdict."""
    assert run(bundle, tmp_path) == 0
    shown = capsys.readouterr().out
    for word in ("identical", bundle.request_id, "seed 90", "ngram", "eps", f"{len(bundle.output)} tokens checked"):
        assert word in shown


def test_a_changed_answer_exits_with_1(bundle: AuditBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The place is shown, with both tokens; with --json the result is one JSON object."""
    changed = replace(bundle, output=[*bundle.output[:5], 4000, *bundle.output[6:]])
    assert run(changed, tmp_path) == 1
    shown = capsys.readouterr().out
    for word in ("hard", "4000", str(bundle.output[5]), str(len(bundle.prompt) + 5), "cannot be"):
        assert word in shown
    assert run(changed, tmp_path, "--json", "--eps", "0.5") == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["verdict"], result["tolerance"]["eps"]) == ("hard", 0.5)
    assert 4000 in [finding["served"] for finding in result["findings"]]


def test_another_model_is_refused_by_name(
    bundle: AuditBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer of another fingerprint exits with 2 and says both, and what to do."""
    assert run(replace(bundle, fingerprint="feedfacefeedface"), tmp_path, "--eps", "0.5") == 2
    said = capsys.readouterr().err
    assert "feedfacefeedface" in said
    assert bundle.fingerprint in said
    assert "--model" in said


def test_what_cannot_be_checked_exits_with_2(
    bundle: AuditBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file, no bundle, no whole model: one line, no traceback."""
    assert main(["audit", str(tmp_path / "none.json")]) == 2
    (tmp_path / "bad.json").write_text("{}")
    assert main(["audit", str(tmp_path / "bad.json")]) == 2
    assert run(bundle, tmp_path, "--tensor-parallel", "2") == 2
    assert run(replace(bundle, finish_reason="error"), tmp_path, "--eps", "0.5") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "model.tensor_parallel" in lines[2]


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """What each verdict means, examples, exit codes."""
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    shown = capsys.readouterr().out
    for word in ("identical", "explained", "hard", "examples:", "exit codes", "--eps"):
        assert word in shown
