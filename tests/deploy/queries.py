"""The expressions of dashboards and alerts, and the metrics and labels that they name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.conftest import DEPLOY, read_yaml

DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
GRAFANA = {"$instance": ".*", "$route": ".*", "$upstream": ".*", "$__rate_interval": "30s", "$__range": "10m"}
"""What Grafana puts in place of its variables, where everything is chosen."""

SCRAPED = frozenset({"instance", "job"})
"""Labels that a scrape adds."""

_METRIC = re.compile(r"\b(specproxy_\w+)(?:\{([^}]*)\})?")
_GROUPED = re.compile(r"\bby \(([^)]*)\)[^{]*?\b(specproxy_\w+)")
_MATCHED = re.compile(r"\b(specproxy_\w+)(?:(?!specproxy_).)*?\bon \(([^)]*)\)(?=.*?\b(specproxy_\w+))")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


@dataclass(frozen=True)
class Query:
    """An expression with its place, and the text beside it that names labels of its result."""

    where: str
    expression: str
    text: str

    @property
    def filled(self) -> str:
        """As Prometheus gets it."""
        expression = self.expression
        for variable, value in GRAFANA.items():
            expression = expression.replace(variable, value)
        return expression

    @property
    def metrics(self) -> set[str]:
        """The names of its metrics."""
        return {name for name, _ in _METRIC.findall(self.expression)}

    @property
    def labels(self) -> set[tuple[str, str]]:
        """(metric, label) for every label that it demands of a metric."""
        found = {(name, label) for name, body in _METRIC.findall(self.expression) for label in _LABEL.findall(body)}
        found |= {(name, label) for labels, name in _GROUPED.findall(self.expression) for label in split(labels)}
        for left, labels, right in _MATCHED.findall(self.expression):
            found |= {(name, label) for name in (left, right) for label in split(labels)}
        return found

    @property
    def shown(self) -> set[str]:
        """The labels that its legend or annotations show."""
        return set(re.findall(r"\{\{\s*(\w+)\s*\}\}", self.text)) | set(re.findall(r"\$labels\.(\w+)", self.text))


def split(labels: str) -> list[str]:
    """``a, b`` as its parts."""
    return [label.strip() for label in labels.split(",")]


def dashboard(file: Path) -> dict[str, Any]:
    """One of ours."""
    read: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return read


def panel_queries() -> list[Query]:
    """Every target of every panel."""
    return [
        Query(f"{file.name}: {panel['title']}", target["expr"], target["legendFormat"])
        for file in DASHBOARDS
        for panel in dashboard(file)["panels"]
        for target in panel["targets"]
    ]


def alerts() -> list[dict[str, Any]]:
    """Every alerting rule."""
    (group,) = read_yaml(DEPLOY / "prometheus" / "rules.yml")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def alert_queries() -> list[Query]:
    """The expression of every alert."""
    return [Query(rule["alert"], rule["expr"], " ".join(rule["annotations"].values())) for rule in alerts()]
