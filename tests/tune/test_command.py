"""``specproxy tune`` with the house model: few prompts, short answers. What is fastest here is the machine's business;
what is measured, told and left alone is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specproxy.bench.records import bundled
from specproxy.cli.main import main

ROUTES = """
defaults: {hold_out: 0}
routes:
  - {name: hot, match: {temperature: {ge: 0.9}}, speculate: {drafters: ngram, k: {max: 4}}}
  - {name: long, match: {prompt_tokens: {gt: 1000}}}
  - name: rest                                     # the catch-all
    limits: {prompt_tokens: 500}
    speculate: off
"""
CONFIG = """
drafters:
  draft_model: {type: draft_model, path: house, max_k: 4}
  ngram: {type: ngram, max_k: 4}
  suffix: {type: suffix, max_k: 2}
"""
SMALL = ("--pairs", "60", "--max-tokens", "8", "--set", "model.threads=1")


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """A set with a route that drafts, one that nothing reaches, and one that is plain; a start configuration."""
    (tmp_path / "specproxy.yaml").write_text(CONFIG)
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "a.yaml").write_text(ROUTES)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Five prompts of JSON, two hot ones."""
    records = [json.loads(line) for line in bundled().read_text("utf-8").splitlines()]
    chosen = [record for record in records if record["category"] == "json"][:5]
    chosen += [record | {"id": f"{record['id']}-hot", "temperature": 1.0} for record in chosen[:2]]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in chosen))
    return file


def tune(prompts: Path, policies: Path, *arguments: str | Path) -> int:
    """Run the command with the configuration beside the policies."""
    files = ["--prompts", prompts, "--policies", policies, "--config", policies.parent / "specproxy.yaml"]
    return main(["tune", *map(str, [*files, *arguments])])


def check_route(found: dict[str, Any], searched: int, held_out: int) -> None:
    """What holds of every route, whatever is fast."""
    assert (found["searched"], found["held_out"]) == (searched, held_out)
    assert all(item["identical"] == item["answers"] == item["pairs"] >= 1 for item in found["tried"])
    assert sum(item["pairs"] for item in found["tried"]) <= 40
    assert [item["out"] for item in found["tried"]].count("") == 1
    drafting = [item for item in found["tried"] if item["setting"].startswith("draft_model")]
    assert drafting
    assert all(item["acceptance"] > 0.3 and item["tokens_per_step"] > 1 for item in drafting)
    assert max(item["speculate"]["k"]["max"] for item in drafting) == 4


def test_every_route_is_tuned_on_its_own_prompts(
    policies: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same answers whatever is drafted; what is active stays; what is written is a set that checks."""
    out = tmp_path / "tuned"
    assert tune(prompts, policies, "--out", out, "--json", *SMALL) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    hot, rest = report["routes"]
    assert (hot["route"], hot["now"]) == ("hot", "ngram, k 0 to 4")
    assert (rest["route"], rest["now"]) == ("rest", "off")
    check_route(rest, 2, 3)
    assert (hot["searched"], hot["held_out"]) == (1, 1)
    assert {"hot", "rest"} <= {word.rstrip(":,") for word in captured.err.split()}
    assert report["machine"]["cores"] >= 1
    assert (policies / "a.yaml").read_text() == ROUTES
    assert sorted(path.name for path in policies.iterdir()) == ["a.yaml"]
    better = [route for route in report["routes"] if route["verdict"] != "keep"]
    assert report["written"] == ([str(out / "a.yaml")] if better else [])
    if better:
        assert main(["policy", "check", str(out)]) == 0
        assert (out / "a.yaml").read_text().count("# specproxy tune") == len(better)


def test_one_route_goes_to_one_file(
    policies: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside nothing that is active. Pairs of two prompts at a time count both answers."""
    out = tmp_path / "rest.candidate.yaml"
    arguments = ("--route", "rest", "--out", out, "--at-once", "2", "--json")
    assert tune(prompts, policies, *arguments, *SMALL) == 0
    report = json.loads(capsys.readouterr().out)
    (rest,) = report["routes"]
    assert all(item["answers"] == 2 * item["pairs"] for item in rest["tried"])
    assert out.exists() == (rest["verdict"] != "keep")
    assert report["written"] == ([str(out)] if out.exists() else [])
    assert (policies / "a.yaml").read_text() == ROUTES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--route", "nosuch"], "there is no route nosuch; expected one of: hot, long, rest"),
        (["--route", "rest", "--out", "{policies}/b.yaml"], "would be active at once"),
        (["--out", "{policies}"], "would be active at once"),
        (["--out", "{parent}"], "is there already"),
        (["--route", "rest", "--out", "{parent}/none/b.yaml"], "expected a file in a folder that exists"),
    ],
)
def test_what_cannot_be_written_is_not_measured(
    policies: Path, prompts: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message, before a model is loaded."""
    filled = [text.format(policies=policies, parent=policies.parent) for text in arguments]
    assert tune(prompts, policies, *filled) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "loading" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--route", "long"], "no prompt goes to the route that is tuned; they go to: hot: 2, long: 0, rest: 5"),
        (["--route", "rest", "--pairs", "9"], "settings for route rest take"),
    ],
)
def test_a_route_that_cannot_be_tuned_is_one_message(
    policies: Path,
    prompts: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With what would help."""
    out = tmp_path / "c.yaml"
    assert tune(prompts, policies, "--out", out, *SMALL, *arguments) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()
