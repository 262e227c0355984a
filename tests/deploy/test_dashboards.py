"""Grafana's dashboards and provisioning, as data: no Grafana is needed to see that they fit together."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.conftest import DEPLOY, ROOT, read_yaml
from tests.deploy.queries import DASHBOARDS, dashboard, panel_queries

PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
NO_MODELS = importlib.util.find_spec("grafana_foundation_sdk") is None and not os.environ.get("CI")
each = pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)


def test_names_are_unique() -> None:
    """Grafana tells dashboards apart by uid, and people by title."""
    made = [dashboard(file) for file in DASHBOARDS]
    assert [board["uid"] for board in made] == [f"specproxy-{file.stem}" for file in DASHBOARDS]
    assert len({board["title"] for board in made}) == len(made) == 5


def lost(written: object, read: object, place: str) -> Iterator[str]:
    """Where ``read`` lacks something of ``written``, or has it otherwise."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from lost(value, read[key], f"{place}.{key}") if key in read else (f"{place}.{key}",)
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for number, (one, other) in enumerate(zip(written, read, strict=True)):
            yield from lost(one, other, f"{place}[{number}]")
    elif written != read:
        yield f"{place}: {written!r} became {read!r}"


@pytest.mark.skipif(NO_MODELS, reason="grafana-foundation-sdk is not here: tests/deploy/requirements.txt")
@each
def test_grafana_knows_every_key(file: Path) -> None:
    """Grafana's own models read the file and write it again without losing anything."""
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard(file))))
    assert list(lost(dashboard(file), again, file.stem)) == []


@each
def test_nothing_is_tied_to_one_installation(file: Path) -> None:
    """The data source and the instance are variables, everywhere; no address stands in the text."""
    board = dashboard(file)
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    asked = [variable for variable in variables.values() if variable["type"] == "query"]
    assert {"instance"} <= {variable["name"] for variable in asked}
    assert all(item["datasource"] == PROMETHEUS for item in [*asked, *board["panels"]])
    for panel in board["panels"]:
        for target in panel["targets"]:
            assert "datasource" not in target
            assert target["expr"].count("specproxy_") == target["expr"].count('instance=~"$instance"')
            used = {name for name in variables if f"${name}" in target["expr"]}
            assert used >= {"instance"}
    assert "localhost" not in file.read_text()
    assert ":8000" not in file.read_text()


@each
def test_panels_lie_beside_each_other(file: Path) -> None:
    """Ids are unique, nothing overlaps or leaves the 24 columns, and each panel says what it shows."""
    panels = dashboard(file)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["description"].endswith(".") for panel in panels)
    taken = [
        (column, row)
        for place in (panel["gridPos"] for panel in panels)
        for column, row in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(set(taken)) == len(taken)
    assert max(column for column, _ in taken) == 23


@each
def test_a_person_can_read_the_file(file: Path) -> None:
    """It is kept by hand: small, and a panel is a dozen lines."""
    assert file.stat().st_size < 12_000
    assert len(file.read_text().splitlines()) < 200


def test_every_subject_is_covered() -> None:
    """Speculation per route, latency, engine, gate and upstreams: their most important metrics are shown somewhere."""
    shown = {metric for query in panel_queries() for metric in query.metrics}
    assert shown >= {
        "specproxy_speedup_ratio",
        "specproxy_accepted_tokens_total",
        "specproxy_time_to_first_token_seconds_bucket",
        "specproxy_inter_token_latency_seconds_bucket",
        "specproxy_step_seconds_bucket",
        "specproxy_kv_pages",
        "specproxy_sequences_limit",
        "specproxy_gate_phase",
        "specproxy_audits_total",
        "specproxy_hard_mismatches_total",
        "specproxy_speculation_killed",
        "specproxy_upstream_up",
    }


def test_provisioning_fits_the_compose_file() -> None:
    """Grafana looks for dashboards where they are mounted, and asks the Prometheus that is started beside it."""
    services = read_yaml(ROOT / "docker-compose.yml")["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    (provider,) = read_yaml(DEPLOY / "grafana/provisioning/dashboards/specproxy.yml")["providers"]
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    (source,) = read_yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert services["prometheus"]["ports"] == ["127.0.0.1:${PROMETHEUS_PUBLISH:-9090}:9090"]
    interval = read_yaml(DEPLOY / "prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
