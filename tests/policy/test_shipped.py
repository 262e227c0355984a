"""The policies that come with specproxy."""

from __future__ import annotations

import json
import re
import time
from importlib import resources
from pathlib import Path

import msgspec
import pytest

from specproxy.cli.policy import schema_text
from specproxy.config.load import load_start_config
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.facts import extract_facts
from specproxy.policy.inherit import inherit
from specproxy.policy.policy import PolicySet
from specproxy.policy.reading import Findings, read_directory
from specproxy.policy.schema import SCHEMA_FILE
from specproxy.policy.testing import run_tests

FOLDER = Path(__file__).parent.parent.parent / "policies"
HOUSE = Catalogue.from_config(load_start_config())

EXPECTED = {
    "json": "structured",
    "tools": "structured",
    "edit": "edits",
    "quote": "edits",
    "code": "code",
    "math": "reasoning",
    "summary": "reasoning",
    "chat": "default",
}


def test_the_shipped_set_has_neither_errors_nor_warnings() -> None:
    """For the bundled model and its drafters."""
    findings = PolicySet.read(FOLDER, HOUSE)[1]
    assert findings.errors == []
    assert findings.warnings == []


@pytest.mark.parametrize("model", ["house", "/models/other"])
def test_the_shipped_policy_tests_pass(model: str) -> None:
    """Also for a user who has no draft model."""
    catalogue = Catalogue.from_config(load_start_config(flags={"model.path": model}))
    outcomes = run_tests(FOLDER, PolicySet.load(FOLDER, catalogue))
    assert len(outcomes) > 10
    assert [outcome.name for outcome in outcomes if not outcome.passed] == []


@pytest.mark.parametrize("category", sorted(EXPECTED))
def test_categories_of_the_benchmark_reach_their_routes(category: str) -> None:
    """By the metadata alone, whatever the prompt looks like."""
    body = {"messages": [{"role": "user", "content": "hello"}], "metadata": {"category": category}}
    decision = PolicySet.load(FOLDER, HOUSE).decide(extract_facts("/v1/chat/completions", {}, body)).decision
    assert decision.route == EXPECTED[category]
    assert decision.auto


def test_the_bundled_prompt_mix_reaches_the_routes_meant_for_it() -> None:
    """Every record as the benchmark sends it; creative ones are hot and draft nothing."""
    policies = PolicySet.load(FOLDER, HOUSE)
    wrong = []
    for file in resources.files("specproxy.bench").joinpath("data").iterdir():
        if not file.name.endswith(".jsonl"):
            continue
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            route = policies.decide(extract_facts("/v1/chat/completions", {}, record)).decision.route
            category = record["metadata"]["category"]
            if route != EXPECTED.get(category, "creative"):
                wrong.append((record["id"], category, route))
    assert wrong == []


def test_the_schema_for_editors_is_up_to_date() -> None:
    """Written anew with: specproxy policy schema > policies/policy.schema.json."""
    assert (FOLDER / SCHEMA_FILE).read_text(encoding="utf-8") == schema_text()


def test_every_file_points_editors_to_the_schema() -> None:
    """In its first line."""
    for file in FOLDER.glob("*.yaml"):
        assert file.read_text(encoding="utf-8").startswith(f"# yaml-language-server: $schema={SCHEMA_FILE}\n")


def test_the_files_state_the_built_in_defaults_as_they_are() -> None:
    """00-defaults.yaml says where it differs; a default changed in one place only would make it lie."""
    source = read_directory(FOLDER, Findings())
    assert source.defaults is not None
    stated = msgspec.to_builtins(inherit([source.defaults]).settings)
    built_in = msgspec.to_builtins(inherit([]).settings)
    assert stated | {"override": False} == built_in


def test_examples_of_the_readme_are_valid(tmp_path: Path) -> None:
    """Each YAML block that is a file loads, with a catch-all and the drafters that it names."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    catalogue = Catalogue.from_config(load_start_config(flags={"drafters": ["draft=draft_model:/d"]}))
    for index, block in enumerate(blocks):
        folder = tmp_path / str(index)
        folder.mkdir()
        content = f"routes:\n  - name: example\n{re.sub('^', '    ', block, flags=re.MULTILINE)}"
        if block.startswith("tests:"):
            (folder / "tests").mkdir()
            (folder / "tests" / "t.yaml").write_text(block)
            for file in FOLDER.glob("*.yaml"):
                (folder / file.name).write_bytes(file.read_bytes())
            assert all(outcome.passed for outcome in run_tests(folder, PolicySet.load(folder, catalogue)))
            continue
        (folder / "a.yaml").write_text(content if block.startswith("match:") else block)
        (folder / "z.yaml").write_text("routes: [{name: rest}]\n")
        PolicySet.load(folder, catalogue)
    assert len(blocks) >= 4


def test_deciding_takes_microseconds() -> None:
    """The shipped set, on a request that no route before the last takes; the best of many runs on a busy machine."""
    policies = PolicySet.load(FOLDER, HOUSE)
    body = {"messages": [{"role": "user", "content": "Tell me about Hawaii. " * 20}], "temperature": 0.7}
    facts = extract_facts("/v1/chat/completions", {}, body)
    best = 1.0
    for _ in range(300):
        start = time.perf_counter()
        policies.decide(facts)
        best = min(best, time.perf_counter() - start)
    assert best < 50e-6
