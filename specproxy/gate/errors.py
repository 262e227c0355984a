"""What can go wrong with the gate.

SpecproxyError
├── StoreDamaged          the gate's file cannot be read, or does not agree with itself
└── RequestError
    ├── NotFound
    │   └── UnknownRevision       404 unknown_revision
    ├── IllegalMove               409 illegal_move
    └── StaleWrite                412 stale_version
"""

from __future__ import annotations

from specproxy.errors import NotFound, RequestError, SpecproxyError


class StoreDamaged(SpecproxyError):
    """The gate's file cannot be read, is of another version, or its audit log was changed behind our back."""


class UnknownRevision(NotFound):
    """No such revision of this route."""

    code = "unknown_revision"


class IllegalMove(RequestError):
    """The state machine does not allow this."""

    status = 409
    type = "invalid_request_error"
    code = "illegal_move"
    retry = False


class StaleWrite(RequestError):
    """Somebody else moved the state since it was read."""

    status = 412
    type = "invalid_request_error"
    code = "stale_version"
    retry = False
