"""docs/deploy.md: what it says is what the files say."""

from __future__ import annotations

import re

from tests.deploy.conftest import ROOT
from tests.deploy.queries import DASHBOARDS, alerts

TEXT = (ROOT / "docs" / "deploy.md").read_text("utf-8")


def test_every_alert_is_in_the_table() -> None:
    """Name and severity, in the order of the rules."""
    rows = re.findall(r"^\| `(Specproxy\w+)` \| (\w+) \|", TEXT, re.MULTILINE)
    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in alerts()]


def test_every_dashboard_is_named() -> None:
    """By its file's name."""
    assert set(re.findall(r"\*\*(\w+)\*\*", TEXT)) >= {file.stem for file in DASHBOARDS}


def test_paths_and_links_lead_somewhere() -> None:
    """Every file and folder that the page names is there."""
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", TEXT) if "://" not in target]
    named = re.findall(r"(?<![\w/])((?:deploy|tests|examples|policies)/[\w./-]*)", TEXT)
    assert len(links) == 3
    assert all((ROOT / "docs" / link).exists() for link in links)
    assert all((ROOT / path).exists() for path in named)


def test_variables_are_those_of_the_compose_file() -> None:
    """Every variable of its table is read there."""
    compose = (ROOT / "docker-compose.yml").read_text("utf-8")
    named = re.findall(r"^\| `([A-Z_]{6,})", TEXT, re.MULTILINE) + re.findall(r"`([A-Z]+_PUBLISH)`", TEXT)
    assert len(named) == 7
    assert all(f"${{{name}:" in compose for name in named)
