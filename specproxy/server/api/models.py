"""The objects of ``/v1/models``."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from specproxy.errors import ModelNotFound
from specproxy.server.api.context import ApiContext


class ModelObject(Struct):
    """One served name. ``root`` is the model behind an alias; ``max_model_len`` as vLLM reports it, tokens."""

    id: str
    created: int
    max_model_len: int
    root: str
    object: str = "model"
    owned_by: str = "specproxy"


class _ModelList(Struct):
    data: list[ModelObject]
    object: str = "list"


def model_list(context: ApiContext, created: int) -> bytes:
    """JSON of every served name. ``created``: Unix seconds, when the server loaded the model."""
    objects = [ModelObject(name, created, context.max_model_len, context.name) for name in context.names]
    return msgspec.json.encode(_ModelList(objects))


def model_object(context: ApiContext, name: str, created: int) -> bytes:
    """JSON of one served name. Raises ModelNotFound."""
    if name not in context.names:
        raise ModelNotFound(f"The model `{name}` does not exist here", param="model")
    return msgspec.json.encode(ModelObject(name, created, context.max_model_len, context.name))
