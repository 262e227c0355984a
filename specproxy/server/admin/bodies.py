"""Request bodies of the admin API."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from specproxy.config.schema import Scalar
from specproxy.errors import InvalidRequest

T = TypeVar("T")

Reason = Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"\S", description="The audit log keeps it.")]
RevisionId = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)", description="64 hex digits.")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,199}$(?!\n)")]


class Files(Struct, forbid_unknown_fields=True, frozen=True):
    """Policy files, name → text, as they would stand in the policies' directory."""

    files: Annotated[dict[FileName, str], Meta(min_length=1, max_length=1000)]


class Asked(Struct, forbid_unknown_fields=True, frozen=True):
    """A request to explain: its body, or an envelope with path, headers and body."""

    request: dict[str, Any]


class Ordered(Struct, forbid_unknown_fields=True, frozen=True):
    """An order. ``force``: promote without the proofs that are still open."""

    revision: RevisionId
    reason: Reason
    force: bool = False


class Switched(Struct, forbid_unknown_fields=True, frozen=True):
    """Kill or lift; ``route``: null for all of them."""

    route: str | None
    reason: Reason


class Loading(Struct, forbid_unknown_fields=True, frozen=True):
    """A drafter to load, as the start configuration would say it. ``path`` is on the server's machine; ``options``:
    the type's own."""

    type: Annotated[str, Meta(min_length=1, max_length=100)]
    reason: Reason
    path: Annotated[str, Meta(max_length=4096)] = ""
    max_k: Annotated[int, Meta(ge=1, le=63)] | None = None
    options: dict[str, Scalar] = {}


class Unloading(Struct, forbid_unknown_fields=True, frozen=True):
    """A drafter goes."""

    reason: Reason


def read(body: bytes, kind: type[T]) -> T:
    """``body`` as a ``kind``. Raises InvalidRequest."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `")
        param = where.rstrip("`").removeprefix("$").lstrip(".") or None
        raise InvalidRequest(
            f"the body is not as expected: {what}" + (f", at {param}" if param else ""), param=param
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is no JSON: {error}") from None
