"""A request on its way to an upstream: its body stays as the client wrote it, but for the model's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from multidict import CIMultiDictProxy

OWN_FIELD = "specproxy"
"""The field with orders to us; OpenAI refuses fields that it does not know."""


@dataclass(frozen=True)
class Call:
    """One request as a client sent it. ``path``: below the base URL, with the query, raw; ``stream``: it wants events;
    ``model``: the name that stands in ``body``, empty where none does."""

    method: str
    path: str
    headers: CIMultiDictProxy[str]
    body: bytes
    request_id: str
    model: str = ""
    stream: bool = False
    generates: bool = False


def rewritten(body: bytes, model: str, models: Mapping[str, str]) -> bytes:
    """``body`` with the model's name as the upstream knows it, and without orders to us. Every other value keeps its
    bytes; a body that needs no change is returned as it is."""
    theirs = models.get(model, model)
    if theirs == model and f'"{OWN_FIELD}"'.encode() not in body:
        return body
    values = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    values.pop(OWN_FIELD, None)
    if theirs != model:
        values["model"] = msgspec.Raw(msgspec.json.encode(theirs))
    return msgspec.json.encode(values)
