"""Outcomes for CI systems."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from specproxy.policy.junit import junit_xml
from specproxy.policy.testing import Mismatch, Outcome

OUTCOMES = [
    Outcome("tests/a.yaml", 2, "good", []),
    Outcome("tests/a.yaml", 7, 'bad <"&> \x01', [Mismatch("route", "b", "a"), Mismatch("k", "5", "off")]),
    Outcome("tests/b.yaml", 2, "fine", []),
]


def test_every_file_is_a_suite_with_its_counts() -> None:
    """Cases in order, with where they stand."""
    root = Xml.fromstring(junit_xml(OUTCOMES))
    assert root.tag == "testsuites"
    assert (root.get("tests"), root.get("failures")) == ("3", "1")
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in root] == [
        ("tests/a.yaml", "2", "1"),
        ("tests/b.yaml", "1", "0"),
    ]
    assert [(case.get("file"), case.get("line")) for case in root.iter("testcase")] == [
        ("tests/a.yaml", "2"),
        ("tests/a.yaml", "7"),
        ("tests/b.yaml", "2"),
    ]


def test_a_failure_says_what_differs() -> None:
    """As a diff, whatever characters its name has."""
    good, bad, _ = Xml.fromstring(junit_xml(OUTCOMES)).iter("testcase")
    assert len(good) == 0
    (failure,) = bad
    assert bad.get("name") == 'bad <"&> �'
    assert failure.get("message") == "not as expected: route, k"
    assert failure.text is not None
    assert failure.text.splitlines()[1:] == ["- route: b", "+ route: a", "- k: 5", "+ k: off"]
