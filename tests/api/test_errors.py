"""Error bodies, and the objects of /v1/models."""

from __future__ import annotations

import json

import pytest

from specproxy.errors import ModelNotFound
from specproxy.server.api import ApiContext, error_body, error_event, model_list, model_object
from specproxy.vocabulary import ErrorInfo


def test_four_keys() -> None:
    """An error body always has its four keys; as an event it is the same."""
    body = error_body(ErrorInfo("what", 400, "invalid_request_error", None, "n"))
    assert json.loads(body) == {
        "error": {"message": "what", "type": "invalid_request_error", "param": "n", "code": None}
    }
    assert error_event(ErrorInfo("what", 400, "invalid_request_error", None, "n")) == b"data: " + body + b"\n\n"


def test_models(context: ApiContext) -> None:
    """Every served name is listed and can be asked for; others are not found."""
    listed = json.loads(model_list(context, 5))
    assert (listed["object"], [entry["id"] for entry in listed["data"]]) == ("list", ["house", "gpt-4o-mini"])
    assert json.loads(model_object(context, "gpt-4o-mini", 5)) == listed["data"][1]
    assert listed["data"][1] == {
        "id": "gpt-4o-mini",
        "object": "model",
        "created": 5,
        "owned_by": "specproxy",
        "root": "house",
        "max_model_len": 2048,
    }
    with pytest.raises(ModelNotFound):
        model_object(context, "gpt-9", 5)
