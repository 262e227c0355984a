"""The policy set of a bench's own server."""

from __future__ import annotations

from pathlib import Path

import pytest

from specproxy.bench.arms import ARM_HEADER, parse_arms
from specproxy.bench.policies import derive
from specproxy.config.load import load_start_config
from specproxy.errors import StartError
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.facts import extract_facts
from specproxy.policy.policy import PolicySet, Verdict

SHIPPED = Path(__file__).parents[2] / "policies"
CREATIVE = {"temperature": 1.0, "messages": [{"role": "user", "content": "Tell me a story."}]}


@pytest.fixture
def derived(tmp_path: Path) -> PolicySet:
    """The shipped set, derived for four arms."""
    derive(SHIPPED, tmp_path, parse_arms(["policy", "auto", "ngram;k=8"], numeric=True))
    return PolicySet.load(tmp_path, Catalogue.from_config(load_start_config()))


def decide(policies: PolicySet, body: dict[str, object], headers: dict[str, str]) -> Verdict:
    """The verdict on a chat request."""
    return policies.decide(extract_facts("/v1/chat/completions", headers, body))


def test_the_policy_arm_is_served_as_shipped(derived: PolicySet) -> None:
    """Without a header the routes decide as the user's set does."""
    shipped = PolicySet.load(SHIPPED, Catalogue.from_config(load_start_config()))
    for body in (CREATIVE, CREATIVE | {"temperature": 0.0}, CREATIVE | {"metadata": {"category": "json"}}):
        ours, theirs = (decide(policies, body, {}).decision for policies in (derived, shipped))
        assert (ours.route, ours.drafters, ours.k_min, ours.k_max) == (
            theirs.route,
            theirs.drafters,
            theirs.k_min,
            theirs.k_max,
        )


def test_any_route_can_be_switched_off(derived: PolicySet) -> None:
    """The override header turns speculation off everywhere."""
    for body in (CREATIVE, CREATIVE | {"temperature": 0.0}):
        assert decide(derived, body, {"x-specproxy-speculate": "off"}).decision.drafters == ()


def test_an_arm_reaches_even_a_route_that_is_off(derived: PolicySet) -> None:
    """The arm's own route comes first and speculates as the arm says, whatever the shipped route allows."""
    decision = decide(derived, CREATIVE, {ARM_HEADER: "ngram;k=8"}).decision
    assert (decision.route, decision.drafters, decision.k_max) == ("creative-ngram-k-8", ("ngram",), 8)
    assert decide(derived, CREATIVE, {ARM_HEADER: "auto"}).decision.auto


def test_nothing_runs_beside_a_measurement(tmp_path: Path) -> None:
    """No route of the set, and none of an arm's, is audited, shadowed or held out, whatever the user's routes say."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(), target.mkdir()
    watched = "audit: {fraction: 1.0, budget: 0.5}, shadow: {fraction: 0.5}, hold_out: 0.1"
    (source / "all.yaml").write_text(
        f"defaults: {{{watched}}}\n"
        f"routes: [{{name: own, match: {{model: x}}, {watched}}}, {{name: part, match: {{model: y}}, "
        "audit: {budget: 0.2}, shadow: {budget: 0.3}}, {name: default}]\n"
    )
    for folder in (source, SHIPPED):
        derive(folder, target, parse_arms(["policy", "ngram;k=8"], numeric=False))
        routes = PolicySet.load(target, Catalogue.from_config(load_start_config())).routes
        assert len(routes) >= 6
        for settings in (route.effective.settings for route in routes):
            assert (settings.audit.fraction, settings.shadow.fraction, settings.hold_out) == (0, 0, 0)
        for file in target.iterdir():
            file.unlink()


def test_an_arm_may_branch(tmp_path: Path) -> None:
    """An arm with a width gets routes with trees of that width; the others stay chains."""
    derive(SHIPPED, tmp_path, parse_arms(["ngram;k=8", "ngram;k=4;width=3;nodes=12"], numeric=True))
    policies = PolicySet.load(tmp_path, Catalogue.from_config(load_start_config()))
    tree = decide(policies, CREATIVE, {ARM_HEADER: "ngram;k=4;width=3;nodes=12"}).decision
    assert (tree.drafters, tree.k_max, tree.tree_width, tree.tree_nodes) == (("ngram",), 4, 3, 12)
    assert decide(policies, CREATIVE, {ARM_HEADER: "ngram;k=8"}).decision.tree_width == 1


def test_exactness_can_be_replaced(tmp_path: Path) -> None:
    """The numeric server's set is numeric on every route."""
    derive(SHIPPED, tmp_path, exactness="numeric")
    policies = PolicySet.load(tmp_path, Catalogue.from_config(load_start_config()))
    assert decide(policies, CREATIVE, {}).decision.exactness == "numeric"


def test_a_folder_without_policies_is_refused(tmp_path: Path) -> None:
    """Measuring nothing is not an option."""
    with pytest.raises(StartError, match="holds no policy files"):
        derive(tmp_path, tmp_path / "out")


def test_broken_yaml_is_named(tmp_path: Path) -> None:
    """A file that is no YAML ends with its name."""
    (tmp_path / "10-broken.yaml").write_text("routes: [")
    with pytest.raises(StartError, match=r"10-broken\.yaml: cannot be read as YAML"):
        derive(tmp_path, tmp_path / "out")
