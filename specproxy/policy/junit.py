"""Outcomes of policy tests in JUnit's XML, which most CI systems show: a suite a file, a case a test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as Xml

from specproxy.policy.testing import Outcome, differences

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold in any form (section 2.2)."""


def junit_xml(outcomes: Sequence[Outcome]) -> str:
    """The document, with its declaration; the case's line is its ``line``, what differed its failure's text."""
    root = Xml.Element("testsuites", _counts(outcomes))
    for file in dict.fromkeys(outcome.file for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.file == file]
        suite = Xml.SubElement(root, "testsuite", {"name": _clean(file)} | _counts(mine))
        for outcome in mine:
            place = {"classname": _clean(file), "file": _clean(file), "line": str(outcome.line)}
            case = Xml.SubElement(suite, "testcase", {"name": _clean(outcome.name)} | place)
            if not outcome.passed:
                fields = ", ".join(mismatch.field for mismatch in outcome.mismatches)
                failure = Xml.SubElement(case, "failure", {"message": f"not as expected: {fields}"})
                failure.text = _clean("\n".join(differences(outcome)))
    Xml.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{Xml.tostring(root, encoding="unicode")}\n'


def _counts(outcomes: Sequence[Outcome]) -> dict[str, str]:
    failed = sum(not outcome.passed for outcome in outcomes)
    return {"tests": str(len(outcomes)), "failures": str(failed), "errors": "0"}


def _clean(text: str) -> str:
    return _NOT_XML.sub("�", text)
