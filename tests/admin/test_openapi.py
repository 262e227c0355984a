"""The OpenAPI document says what the API does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from specproxy.server.admin.openapi import REASONS
from tests.admin.conftest import Admin


def refs(value: Any) -> Iterator[str]:
    """Every reference in a document."""
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from refs(item)


async def test_every_path_is_described_and_every_reference_leads_somewhere(admin: Admin) -> None:
    """Paths, parameters, bodies and answers; names of operations are unique."""
    status, found = await admin.ask("GET", "/openapi.json")
    assert (status, found["openapi"]) == (200, "3.1.0")
    schemas = found["components"]["schemas"]
    assert {f"#/components/schemas/{name}" for name in schemas} == set(refs(found))
    operations = [operation for path in found["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations) == 19
    for path, methods in found["paths"].items():
        for operation in methods.values():
            given = {item["name"] for item in operation.get("parameters", []) if item["in"] == "path"}
            assert given == set(re.findall(r"\{(\w+)\}", path))
            assert {"200", "401"} <= set(operation["responses"])
    assert found["security"] == [{"key": []}]


async def test_orders_say_that_they_need_a_version_and_a_reason(admin: Admin) -> None:
    """A client that is made from the document cannot forget them."""
    _, found = await admin.ask("GET", "/openapi.json")
    promote = found["paths"]["/admin/v1/routes/{route}/promote"]["post"]
    assert next(item for item in promote["parameters"] if item["name"] == "If-Match")["required"]
    assert {"404", "409", "412", "428"} <= set(promote["responses"])
    body = found["components"]["schemas"]["Ordered"]
    assert body["required"] == ["revision", "reason"]
    assert body["additionalProperties"] is False


async def test_answers_are_what_the_document_says(admin: Admin) -> None:
    """Each key of a status is described, down to the candidate's."""
    _, found = await admin.ask("GET", "/openapi.json")
    _, status = await admin.ask("GET", "/status")
    schemas = found["components"]["schemas"]
    assert set(status) == set(schemas["Status"]["properties"])
    assert set(status["routes"][0]) == set(schemas["RouteStatus"]["properties"])
    assert set(status["routes"][0]["candidate"]) == set(schemas["Candidate"]["properties"])


def test_every_status_has_a_meaning() -> None:
    """None is described as though it were another."""
    assert len(set(REASONS.values())) == len(REASONS)
