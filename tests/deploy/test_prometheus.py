"""Prometheus' configuration and alert rules, as its own tool judges them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.deploy.conftest import DEPLOY, ROOT, needs, passed, read_yaml, run
from tests.deploy.queries import alerts

CASES = ROOT / "tests" / "deploy" / "rules.test.yml"
pytestmark = needs("promtool")


def test_the_configuration_is_valid() -> None:
    """promtool finds no fault in the configuration, nor in the rules that it loads."""
    printed = passed(run("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml"))
    assert f"{len(alerts())} rules found" in printed


def test_alerts_fire_when_they_should_and_not_before() -> None:
    """promtool plays made-up series to the rules: each alert of the cases fires at its time, with its words."""
    assert "SUCCESS" in passed(run("promtool", "test", "rules", CASES))


def test_a_rule_that_is_changed_fails_its_case(tmp_path: Path) -> None:
    """The cases notice a rule that says something else: here the threshold of a full queue."""
    rules = (DEPLOY / "prometheus" / "rules.yml").read_text()
    assert rules.count("> 0.9\n") == 1
    (tmp_path / "rules.yml").write_text(rules.replace("> 0.9\n", "> 0.99\n"))
    (tmp_path / "cases.yml").write_text(CASES.read_text().replace("../../deploy/prometheus/", ""))
    done = run("promtool", "test", "rules", tmp_path / "cases.yml")
    assert done.returncode != 0
    assert "SpecproxyQueueFull" in done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    """No alert without a case that shows it with its words."""
    cases = [case for group in read_yaml(CASES)["tests"] for case in group["alert_rule_test"]]
    fired = {case["alertname"] for case in cases if case.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in alerts()}


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    """Severity, summary and description; names start alike, so that they can be routed."""
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"Specproxy[A-Z]\w+", rule["alert"])
