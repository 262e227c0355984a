"""A real Prometheus scrapes a real server: what dashboards and alerts ask for is there."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from specproxy.server.metrics import Metrics
from specproxy.server.upstream_metrics import UpstreamStates
from tests.deploy.conftest import POLICY, ROOT, SIDECAR, Prometheus, needs
from tests.deploy.dockerfile import chain, last, read_stages
from tests.deploy.queries import SCRAPED, Query, alert_queries, alerts, panel_queries

pytestmark = [needs("prometheus"), pytest.mark.slow, pytest.mark.timeout(400)]
KEY = "the-operators-own-key"
WAIT_S = 90.0
QUERIES = [*panel_queries(), *alert_queries()]
SILENT = {
    # Nothing of this happened here, and a labelled counter shows nothing before its first event.
    "specproxy_shadow_dropped_total",
    # The upstream of this server is not there.
    "specproxy_upstream_requests_total",
    "specproxy_upstream_first_byte_seconds_bucket",
    "specproxy_upstream_accepted_tokens_total",
    "specproxy_upstream_draft_tokens_total",
}
"""Metrics without a sample on a healthy server; their panels may be empty."""


@dataclass
class Site:
    """A server, the Prometheus that watches it, and what was scraped."""

    server: Any
    prometheus: Prometheus
    policies: Path

    def scrape(self) -> str:
        """/metrics."""
        text: str = self.server.get("/metrics").text
        return text

    def ask(self, number: int) -> None:
        """A conversation of its own on each route."""
        for body in (
            {"metadata": {"category": "far"}, "messages": [person(number)], "max_tokens": 4},
            {"metadata": {"category": "json"}, "messages": [person(number)], "max_tokens": 40},
            {"messages": [{"role": "user", "content": f"Say {number}."}], "max_tokens": 12},
        ):
            answer = httpx.post(
                f"{self.server.base_url}/chat/completions",
                json={"model": "house", "temperature": 0, **body},
                timeout=60,
                trust_env=False,
            )
            assert answer.status_code == 200, answer.text

    def policy(self, *words: str) -> None:
        """``specproxy policy …`` as the operator."""
        command = [sys.executable, "-m", "specproxy", "policy", *words, "--admin", self.server.ready()["admin"]]
        env = {**os.environ, "SPECPROXY_ADMIN_KEY": KEY}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def person(number: int) -> dict[str, str]:
    """A prompt that the house model answers with JSON."""
    return {
        "role": "user",
        "content": f"Extract the person as JSON with keys name, age, city.\n\nAnna Novak is {number} and from Oslo.",
    }


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    start_server: Callable[..., Any],
    start_prometheus: Callable[[str], Prometheus],
    eventually: Callable[..., None],
) -> Site:
    """After requests on two routes, audits, shadow pairs of a candidate, a kill switch and an engine that died."""
    folder = tmp_path_factory.mktemp("site")
    policies = folder / "policies"
    policies.mkdir()
    (policies / "all.yaml").write_text(POLICY)
    server = start_server(
        "--policies", str(policies), "--drafter", "ngram=ngram", "--admin-port", "0",
        env={"SPECPROXY_ADMIN_KEY": KEY, "SPECPROXY_UPSTREAMS__FAR__URL": "http://127.0.0.1:1/v1"},
    )  # fmt: skip
    made = Site(server, start_prometheus(server.url.removeprefix("http://")), policies)
    eventually(lambda: made.prometheus.query("specproxy_engine_up == 1"), timeout_s=WAIT_S, what="a scrape")
    for number in range(4):
        made.ask(number)
    (policies / "all.yaml").write_text(POLICY.replace("k: 4", "k: 2"))
    eventually(lambda: server.metric("specproxy_gate_phase", phase="shadow") > 0, timeout_s=WAIT_S, what="a candidate")
    for number in range(4, 12):
        made.ask(number)
    eventually(
        lambda: server.metric("specproxy_audits_total", verdict="identical") > 2, timeout_s=WAIT_S, what="audits"
    )
    eventually(lambda: server.metric("specproxy_shadow_pairs_total") > 0, timeout_s=WAIT_S, what="shadow pairs")
    made.policy("kill", "default", "--reason", "a test")
    os.kill(server.engine_pid, signal.SIGKILL)
    eventually(lambda: server.metric("specproxy_engine_starts_total") == 2, timeout_s=WAIT_S, what="a second engine")
    made.ask(12)
    eventually(lambda: not empty(made), timeout_s=WAIT_S, what="something in every panel")
    return made


def empty(site: Site) -> list[str]:
    """Panels without a series that are not excused."""
    return [
        query.where
        for query in panel_queries()
        if not query.metrics <= SILENT and not site.prometheus.query(query.filled)
    ]


def instruments() -> dict[str, tuple[str, ...]]:
    """Label names by sample name, as the server declares its metrics."""
    names: dict[str, Any] = Metrics().registry._names_to_collectors
    known = {
        name: (*found._labelnames, *(("le",) if name.endswith("_bucket") else ())) for name, found in names.items()
    }
    families: Iterator[Any] = UpstreamStates({}).collect()
    for family in families:
        known[family.name + ("_total" if family.type == "counter" else "")] = family._labelnames
    return known


def exported(text: str) -> set[str]:
    """The sample names that a scrape declares by its TYPE lines, whether there are samples yet or not."""
    found = set()
    for name, kind in re.findall(r"^# TYPE (specproxy_\w+) (\w+)$", text, re.MULTILINE):
        found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return found


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_metrics_and_labels_are_exported(site: Site, query: Query) -> None:
    """Every metric that is asked for has its TYPE line in the scrape, and every label demanded is one of its."""
    assert query.metrics or query.where == "SpecproxyDown"
    assert query.metrics <= exported(site.scrape())
    known = instruments()
    assert {(m, label) for m, label in query.labels if label not in {*known[m], *SCRAPED}} == set()
    assert query.shown <= {label for m in query.metrics for label in known[m]} | SCRAPED


def test_labels_of_the_scrape_are_the_declared_ones(site: Site) -> None:
    """Each sample that was scraped carries the labels that the server declares for it, and no others."""
    known = instruments()
    scraped = re.findall(r"^(specproxy_\w+)(?:\{(.*)\})? \S+$", site.scrape(), re.MULTILINE)
    samples = [(name, body) for name, body in scraped if name in known]
    assert len(samples) > 100
    for name, body in samples:
        assert set(re.findall(r'(\w+)="', body)) == set(known[name]), name


def test_every_panel_shows_something(site: Site) -> None:
    """After some traffic every expression of every panel gives a series, but for events that did not happen."""
    assert empty(site) == []


def test_panels_show_what_happened(site: Site) -> None:
    """Some of the numbers: shares lie between 0 and 1, one restart, one switch, nothing wrong."""
    by_title = {query.where.partition(": ")[2]: query for query in panel_queries()}

    def value(title: str) -> list[float]:
        return [float(series["value"][1]) for series in site.prometheus.query(by_title[title].filled)]

    shares = [share for share in value("Acceptance by depth") if not math.isnan(share)]  # NaN: not drafted meanwhile
    assert shares
    assert all(0 <= share <= 1 for share in shares)
    assert value("Restarts") == [1.0]
    assert value("Kill switches") == [1.0]
    assert value("Hard mismatches") == [0.0]
    assert value("Engines that are ready") == [1.0]
    phases = site.prometheus.query(by_title["What serves, and what is on its way"].filled)
    assert {(s["metric"]["route"], s["metric"]["phase"]) for s in phases} >= {("json", "active"), ("default", "active")}
    assert site.prometheus.query('max_over_time(specproxy_gate_phase{route="json", phase="shadow"}[10m])')


def test_probes_are_answered(site: Site) -> None:
    """The paths that the image's health check and the pod's probes ask exist, and say that all is well."""
    paths = {probe["httpGet"]["path"] for name, probe in SIDECAR.items() if name.endswith("Probe")}
    paths |= set(re.findall(r"\]\}(/\w+)'", last(chain(read_stages(ROOT / "Dockerfile"), "cpu"), "HEALTHCHECK").text))
    assert paths == {"/health", "/ready"}
    assert {site.server.get(path).status_code for path in paths} == {200}


def test_rules_are_evaluated_without_faults(site: Site, eventually: Callable[..., None]) -> None:
    """Prometheus evaluates every rule: the restart fires, the kill switch and the lost upstream wait for their time."""

    def rules() -> dict[str, dict[str, Any]]:
        (group,) = site.prometheus.ask("rules")["groups"]
        return {rule["name"]: rule for rule in group["rules"]}

    eventually(lambda: rules()["SpecproxyEngineRestarted"]["state"] == "firing", timeout_s=WAIT_S, what="the alert")
    found = rules()
    assert set(found) == {rule["alert"] for rule in alerts()}
    assert {rule["health"] for rule in found.values()} == {"ok"}
    states = {name: rule["state"] for name, rule in found.items() if rule["state"] != "inactive"}
    # How fast a few answers are on a busy machine is not ours to say, nor what the gate makes of the dead engine.
    for name in ("SpecproxySlowerThanPlain", "SpecproxyCandidateStopped", "SpecproxyRolledBack"):
        states.pop(name, None)
    assert states == {
        "SpecproxyEngineRestarted": "firing",
        "SpecproxyKillSwitch": "pending",
        "SpecproxyUpstreamDown": "pending",
    }
