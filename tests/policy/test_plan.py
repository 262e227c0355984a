"""What a candidate set would change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from specproxy.errors import ConfigError
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.plan import Flow, plan
from specproxy.policy.policy import PolicySet
from specproxy.policy.request_file import read_requests

if TYPE_CHECKING:
    from tests.policy.conftest import MakeFacts

ACTIVE = """
routes:
  - {name: hot, match: {temperature: {ge: 0.9}}, speculate: off}
  - {name: tools, match: {tools: present}, speculate: {k: {max: 4}}}
  - {name: rest}
"""


def sets(folder: Path, catalogue: Catalogue, candidate: str) -> tuple[PolicySet, PolicySet]:
    """The active set and a candidate of this text."""
    made = []
    for name, text in (("active", ACTIVE), ("candidate", candidate)):
        (folder / name).mkdir()
        (folder / name / "a.yaml").write_text(text)
        made.append(PolicySet.load(folder / name, catalogue))
    return made[0], made[1]


def test_the_same_set_changes_nothing(tmp_path: Path, catalogue: Catalogue, facts_of: MakeFacts) -> None:
    """However it is written."""
    active, candidate = sets(tmp_path, catalogue, ACTIVE.replace("off}", "{k: 0}}"))
    found = plan([facts_of(), facts_of(temperature=1)], active, candidate)
    assert (found.requests, found.changes, found.flows, found.routes, found.touched()) == (2, [], [], [], [])


def test_another_range_of_k_changes_the_requests_of_its_route(
    tmp_path: Path, catalogue: Catalogue, facts_of: MakeFacts
) -> None:
    """Each is named with what differs; requests of other routes are not."""
    active, candidate = sets(tmp_path, catalogue, ACTIVE.replace("{max: 4}", "{max: 8}"))
    tools = [{"type": "function", "function": {"name": "f"}}]
    found = plan([facts_of(), facts_of(tools=tools), facts_of(temperature=1)], active, candidate)
    (change,) = found.changes
    assert (change.request, change.fields) == (2, ["k"])
    assert (change.before.k, change.after.k) == ("0 to 4", "0 to 8")
    assert [(item.route, item.kind) for item in found.routes] == [("tools", "edited")]
    assert found.touched() == ["tools"]


def test_an_edited_match_touches_the_route_that_loses_its_requests(
    tmp_path: Path, catalogue: Catalogue, facts_of: MakeFacts
) -> None:
    """Its own text is the same, and yet it is a change of both."""
    active, candidate = sets(tmp_path, catalogue, ACTIVE.replace("ge: 0.9", "ge: 0.5"))
    found = plan([facts_of(temperature=t) for t in (0.1, 0.6, 0.7, 0.95)], active, candidate)
    assert [change.request for change in found.changes] == [2, 3]
    assert found.changes[0].fields == ["route", "drafters", "k"]
    assert found.flows == [Flow("rest", "hot", 2)]
    assert [item.route for item in found.routes] == ["hot"]
    assert found.touched() == ["hot", "rest"]


def test_a_limit_that_refuses_is_a_change(tmp_path: Path, catalogue: Catalogue, facts_of: MakeFacts) -> None:
    """With the message that clients would get."""
    active, candidate = sets(tmp_path, catalogue, ACTIVE.replace("name: rest", "name: rest, limits: {max_tokens: 10}"))
    (change,) = plan([facts_of(max_tokens=20), facts_of(max_tokens=5)], active, candidate).changes
    assert (change.fields, change.before.refused) == (["refused"], None)
    assert change.after.refused is not None
    assert "allows 10 at most" in change.after.refused


def test_routes_that_come_and_go_are_named(tmp_path: Path, catalogue: Catalogue, facts_of: MakeFacts) -> None:
    """With their revisions; the order of the routes alone shows by the requests that move."""
    changed = "routes:\n  - {name: new, match: {tools: present}}\n  - {name: rest}\n"
    active, candidate = sets(tmp_path, catalogue, changed)
    found = plan([facts_of(temperature=1)], active, candidate)
    assert [(item.route, item.kind) for item in found.routes] == [
        ("new", "added"),
        ("hot", "removed"),
        ("tools", "removed"),
    ]
    assert [item.before is None for item in found.routes] == [True, False, False]
    assert found.flows == [Flow("hot", "rest", 1)]


def test_request_files_hold_bodies_and_envelopes(tmp_path: Path) -> None:
    """One a line; what surrounds a body counts."""
    file = tmp_path / "r.jsonl"
    file.write_text('{"messages": []}\n\n{"body": {"prompt": "x"}, "headers": {"a": "b"}, "load": 3}\n')
    first, second = (envelope.facts() for envelope in read_requests(file))
    assert (first.path, second.path, second.load) == ("/v1/chat/completions", "/v1/completions", 3)
    assert second.headers == {"a": "b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}\n{", "r.jsonl:2: is not JSON"), ("[]", "r.jsonl:1: expected a request body"), ("\n", "holds no requests")],
)
def test_wrong_request_files_are_errors_with_lines(tmp_path: Path, content: str, message: str) -> None:
    """A plan over half of the requests would be a wrong plan."""
    file = tmp_path / "r.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_requests(file)
