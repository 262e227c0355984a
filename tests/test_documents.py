"""The documents: what they show exists and works as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from specproxy.cli.main import build_parser
from specproxy.config.load import load_start_config
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.policy import PolicySet

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "BENCHMARKS.md",
    "policies/README.md",
    "docs/api-fields.md",
    "docs/models.md",
    "docs/gate.md",
    "docs/admin.md",
    "docs/deploy.md",
    "docs/keys.md",
    "docs/ray.md",
    "docs/upstreams.md",
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return [body for found, body in FENCE.findall((ROOT / page).read_text("utf-8")) if found == language]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link of a page names a file of the repository."""
    text = (ROOT / page).read_text("utf-8")
    targets = [t.partition("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    missing = [target for target in targets if target and not ((ROOT / page).parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_exist(page: str) -> None:
    """Every `make x` that a page mentions is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / page).read_text("utf-8"), re.MULTILINE))
    assert named
    assert named <= targets


def test_paths_of_contributing_exist() -> None:
    """Every file of the package that CONTRIBUTING names is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`((?:server|engine|text|policy|kernels|tests|scripts|policies|specproxy)/[\w./]+)`", text)
    missing = [n for n in named if not (ROOT / n).exists() and not (ROOT / "specproxy" / n).exists()]
    assert named
    assert missing == []


def test_commands_of_the_readme_parse() -> None:
    """Every `specproxy …` line of the README is accepted by the command line as written."""
    lines = [line.partition("  #")[0] for body in blocks("README.md", "bash") for line in body.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("specproxy ")]
    assert len(commands) >= 8
    for command in commands:
        assert callable(build_parser(command[0]).parse_args(command).run)


def test_the_readme_snippet_answers(base_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The SDK snippet, run as written against a real server, prints the person as JSON and what was drafted."""
    (snippet,) = blocks("README.md", "python")
    assert snippet.count("http://127.0.0.1:8000/v1") == 1
    exec(compile(snippet.replace("http://127.0.0.1:8000/v1", base_url), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert '"name": "Anna Novak"' in printed
    assert "'route': 'structured'" in printed
    assert "'drafted'" in printed


def test_the_policy_of_the_readme_is_a_policy(tmp_path: Path) -> None:
    """The policy snippet is a complete set: it loads without warnings."""
    (snippet,) = blocks("README.md", "yaml")
    (tmp_path / "10-readme.yaml").write_text("version: 1\n" + snippet, encoding="utf-8")
    policies = PolicySet.load(tmp_path, Catalogue.from_config(load_start_config()))
    assert policies.warnings == ()


def test_the_walk_through_is_a_policy_before_and_after_its_edit(tmp_path: Path) -> None:
    """The set that the README writes, and what its sed makes of it: the gate is on, and one route gets a drafter."""
    script = next(body for body in blocks("README.md", "bash") if "cat > demo/all.yaml" in body)
    before = script.partition("<<'END'\n")[2].partition("END\n")[0]
    (edit,) = re.findall(
        r"^sed -i 's/(.+)/(.+)/' demo/all.yaml$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    found = []
    for text in (before, before.replace(*edit)):
        (tmp_path / "all.yaml").write_text(text, encoding="utf-8")
        policies = PolicySet.load(tmp_path, Catalogue.from_config(load_start_config()))
        assert policies.warnings == ()
        assert [route.effective.settings.gate.mode for route in policies.routes] == ["auto", "auto"]
        found.append([route.decision for route in policies.routes])
    assert [decision.drafters for decision in (found[0][0], found[1][0])] == [(), ("ngram",)]
    assert found[0][1] == found[1][1]


def test_the_example_configuration_shows_the_defaults() -> None:
    """The example loads, and differs from the defaults only where it says so."""
    example, default = load_start_config(ROOT / "examples" / "specproxy.yaml"), load_start_config()
    assert example.model.aliases == ["gpt-4o-mini"]
    example.model.aliases = []
    assert example == default
