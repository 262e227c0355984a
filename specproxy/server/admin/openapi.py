"""The OpenAPI 3.1 document, made from the table of calls and their Structs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

import specproxy
from specproxy.server.admin.api import ROOT, Call
from specproxy.server.admin.operator import Log, Status

REASONS = {
    400: "The request is malformed; the message says where.",
    401: "No key, or an unknown one.",
    403: "A page of another origin asks.",
    404: "No such route, revision, bundle or drafter.",
    409: "The gate's states do not allow this move, or a route names the drafter; the message says what is missing.",
    412: "Somebody else changed it since its ETag was read.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    421: "The server is not called by this host name.",
    422: "The engine refuses the drafter, in its words; nothing has changed.",
    428: "If-Match is missing.",
    429: "Too many wrong keys came from there lately, or too many event streams are open.",
    500: "A fault of the server; the log has it under the request's id.",
    503: "The engine is not there now.",
    504: "The engine is still at it; the change goes on.",
}
"""Status → what it means here."""

ALWAYS = (401, 403, 421, 429, 500)
WITH_BODY = (400, 413, 415)


class ErrorObject(Struct):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct):
    """The body of every refusal."""

    error: ErrorObject


def document(calls: Sequence[Call]) -> dict[str, Any]:
    """The document, as builtins."""
    kinds = dict.fromkeys([call.answer for call in calls] + [c.takes for c in calls if c.takes] + [ErrorBody])
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    refs = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for call in calls:
        paths.setdefault(ROOT + call.path, {})[call.method.lower()] = _operation(call, refs)
    paths[f"{ROOT}/events"] = {"get": _events(refs)}
    paths[f"{ROOT}/openapi.json"] = {"get": _itself(refs)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "specproxy admin API",
            "version": specproxy.__version__,
            "description": "What serves, what is on its way, and the orders that a person may give. Times are Unix "
            "seconds, durations seconds, gains ratios less 1.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "The admin key."}},
        },
    }


def _operation(call: Call, refs: dict[type[Struct], Any]) -> dict[str, Any]:
    errors = {*ALWAYS, *call.errors, *(WITH_BODY if call.takes else ())}
    headers = {"ETag": {"description": "Of its state now.", "schema": {"type": "string"}}}
    answer = _json("The answer.", refs[call.answer]) | ({"headers": headers} if call.versioned else {})
    operation: dict[str, Any] = {
        "operationId": _name(call),
        "summary": call.summary,
        "parameters": [*_parameters(call)],
        "responses": {"200": answer, **_refusals(errors, refs)},
    }
    if call.takes:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": refs[call.takes]}}}
    return operation


def _parameters(call: Call) -> list[dict[str, Any]]:
    names = re.findall(r"\{(\w+)\}", call.path)
    found = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    found += [_whole_number(name, text) for name, text in call.query]
    if call.versioned:
        text = "The ETag of what the order was made for."
        required, schema = call.versioned == "always", {"type": "string"}
        if not required:
            text += f" Needed {call.versioned}."
        found.append({"name": "If-Match", "in": "header", "required": required, "description": text, "schema": schema})
    return found


def _whole_number(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": {"type": "integer", "minimum": 0}}


def _events(refs: dict[type[Struct], Any]) -> dict[str, Any]:
    status, log = (refs[kind]["$ref"].rpartition("/")[2] for kind in (Status, Log))
    text = f"Server-sent events: `status` with a {status}, `log` with a {log} of new entries."
    return {
        "operationId": "getEvents",
        "summary": "The status and the log as they change",
        "parameters": [_whole_number("after", "Log entries above this one come first; default: only new ones.")],
        "responses": {
            "200": {"description": text, "content": {"text/event-stream": {"schema": {"type": "string"}}}},
            **_refusals({*ALWAYS, 400}, refs),
        },
    }


def _itself(refs: dict[type[Struct], Any]) -> dict[str, Any]:
    answer = _json("An OpenAPI 3.1 document.", {"type": "object"})
    return {
        "operationId": "getOpenapi",
        "summary": "This document",
        "responses": {"200": answer, **_refusals(set(ALWAYS), refs)},
    }


def _refusals(statuses: set[int], refs: dict[type[Struct], Any]) -> dict[str, Any]:
    return {str(status): _json(REASONS[status], refs[ErrorBody]) for status in sorted(statuses)}


def _json(description: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _name(call: Call) -> str:
    """``POST /routes/{route}/promote`` as ``postPromote``."""
    words = [part for part in call.path.split("/") if part and not part.startswith("{")]
    return call.method.lower() + words[-1].capitalize()
