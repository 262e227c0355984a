"""What the admin API asks of whatever loads drafters, and the values that it answers with."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from specproxy.config.schema import DrafterConfig

ABSENT = '"absent"'
"""The ETag of a drafter that is not loaded."""


class DrafterStatus(Struct, frozen=True):
    """A drafter that is loaded, or that was and should be.

    ``declared``: by the start configuration, or at run time, which outlives the server. ``fingerprint``: of options and
    weights; ``etag``: of that. ``max_k``: levels that it can draft; ``window``: tokens of context that it sees,
    ``None`` where those are the target's. Memory in bytes. ``routes``: those that may draft with it now;
    ``named_by``: those whose text names it, so that it cannot be replaced or unloaded. ``problem``: why it is not
    loaded, in words.
    """

    name: str
    type: str
    path: str
    declared: str
    loaded: bool
    fingerprint: str
    etag: str
    max_k: int | None
    window: int | None
    weight_bytes: int
    kv_bytes: int
    routes: list[str]
    named_by: list[str]
    problem: str = ""


class Drafters(Struct, frozen=True):
    """All of them. ``doing``: the change under way, in words; empty where there is none."""

    drafters: list[DrafterStatus]
    doing: str = ""


class DrafterOperator(Protocol):
    """Loads and unloads drafters. Nothing is changed where a call raises; a change is in the audit log when it returns.

    Errors: StaleWrite (the ETag is not of what is loaded), IllegalMove (a route names it, or another change is under
    way), ModelLoadError (the engine refuses it, in its words), EngineFailed (it died over it), EngineUnavailable.
    ``actor`` is the id of the credential that was presented.
    """

    def listed(self) -> Drafters:
        """What is loaded, and what uses it."""

    async def load(
        self, name: str, config: DrafterConfig, *, reason: str, actor: str, etag: str | None
    ) -> DrafterStatus:
        """Load a drafter, or other weights under a name that no route names: read, test, measure, and only then switch.
        ``etag``: what the order was made for, ``None`` for a new name."""

    async def unload(self, name: str, *, reason: str, actor: str, etag: str) -> Drafters:
        """Drop a drafter that no route names; what is left. Raises NotFound."""
