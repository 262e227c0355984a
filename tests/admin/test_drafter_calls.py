"""The calls about drafters, where there is nothing to load them: what is refused before an engine is asked."""

from __future__ import annotations

from typing import Any

import pytest

from specproxy.policy.catalogue import Catalogue, DrafterSpec
from specproxy.policy.request_file import as_envelope
from tests.admin.conftest import Admin

NGRAM = {"type": "ngram", "reason": "r"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "says"),
    [
        ("PUT", "/drafters/new", NGRAM, {}, 503, "the engine is not there now"),
        ("PUT", "/drafters/new", NGRAM, {"if_match": '"0123456789ab"'}, 412, 'drafter new is at "absent" by now'),
        ("PUT", "/drafters/auto", NGRAM, {}, 400, '"auto" is a word of the policy language'),
        ("PUT", "/drafters/a%20b", NGRAM, {}, 400, "expected a name of letters"),
        ("PUT", "/drafters/new", {"type": "ngram"}, {}, 400, "missing required field `reason`"),
        ("PUT", "/drafters/new", NGRAM | {"max_k": 64}, {}, 400, "at max_k"),
        ("PUT", "/drafters/new", NGRAM | {"options": {"hidden": [1, 2]}}, {}, 400, "at options"),
        ("PUT", "/drafters/new", NGRAM | {"fingerprint": "f"}, {}, 400, "unknown field `fingerprint`"),
        ("DELETE", "/drafters/new", {"reason": "r"}, {}, 428, "If-Match is missing"),
        ("DELETE", "/drafters/new", {"reason": "r"}, {"if_match": "*"}, 428, "If-Match is missing"),
        ("DELETE", "/drafters/new", {"reason": "r"}, {"if_match": '"absent"'}, 404, "there is no drafter new"),
        ("DELETE", "/drafters/new", {"reason": " "}, {"if_match": '"absent"'}, 400, "at reason"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    admin: Admin, method: str, path: str, body: Any, headers: dict[str, str], status: int, says: str
) -> None:
    """In OpenAI's form, with what was expected; nothing is in the log."""
    await admin.refuses(method, path, body, headers, status=status, says=says)
    assert await admin.ask("GET", "/drafters") == (200, {"drafters": [], "doing": ""})


async def test_the_document_says_when_a_version_is_needed(admin: Admin) -> None:
    """Always to unload; to load, where a drafter of that name is there."""
    _, found = await admin.ask("GET", "/openapi.json")
    path = found["paths"]["/admin/v1/drafters/{name}"]
    needed = {m: next(i for i in path[m]["parameters"] if i["name"] == "If-Match")["required"] for m in path}
    assert needed == {"put": False, "delete": True}
    assert {"409", "412", "422", "428", "503", "504"} <= set(path["put"]["responses"])
    assert set(found["components"]["schemas"]["Loading"]["required"]) == {"type", "reason"}


async def test_other_weights_under_a_name_do_not_draft_unproven(admin: Admin) -> None:
    """An engine that came back with a drafter of another fingerprint: a gated route has none until the gate let it
    pass, although its text is the same."""
    gate = admin.operator.gate
    facts = as_envelope({"messages": [], "metadata": {"kind": "code"}}, "request").facts()
    assert gate.decider.active(facts).decision.drafters == ("ngram",)
    gate.policies.use(Catalogue(drafters=(DrafterSpec("ngram", "ngram", 16, None, "n2"),), exactness="bitwise"))
    await gate.tick()
    assert gate.decider.active(facts).decision.drafters == ()
