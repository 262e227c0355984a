"""What a gate store keeps, and the protocol that every store implements.

A transition is one write: the new state, the evidence it rests on and a line of the audit log, all or nothing; a kill
switch is written together with the lines that tell of it. The log
is only ever appended to, and each entry holds the hash of the one before, so that a change or a gap shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from specproxy.gate.assessment import Assessment
from specproxy.gate.evidence import Evidence
from specproxy.gate.kills import Kill
from specproxy.gate.rules import Rules
from specproxy.gate.states import GateState, Move, Phase
from specproxy.policy.schema import Settings

GENESIS = "0" * 64
"""The hash before the first entry."""


class Revision(Struct, frozen=True, kw_only=True):
    """A route as it was handed in, whole, so that it can serve without the file it came from.

    ``revision``: 64 hex digits, as the policy computes it. ``match`` and ``settings``: the route's conditions, and its
    settings after inheritance, as builtins. ``drafters``: name → fingerprint. ``position``: the route's place in its
    set, since the first match wins.
    """

    route: str
    revision: str
    position: int
    match: dict[str, Any]
    settings: dict[str, Any]
    drafters: dict[str, str]
    created: float

    def effective(self) -> Settings:
        """The settings, as the policy reads them."""
        return msgspec.convert(self.settings, Settings)


class Transition(Struct, frozen=True):
    """A move on its way into the store. ``actor``: a key's id, a file watcher, the gate; from credentials, never from
    what a client says. ``evidence`` ``None``: what is stored stays."""

    move: Move
    actor: str
    time: float
    evidence: Evidence | None = None
    rules: Rules | None = None


class AuditEntry(Struct, frozen=True, kw_only=True):
    """One line of the audit log. ``before`` ``None``: the revision was new. ``content``: SHA-256 of the stored
    revision. ``findings`` and ``rules``: what the gate saw and by which rules. ``previous``: hash of the entry
    before. ``switches``: SHA-256 of all kill switches that hold from here on, where this entry tells of one; ``None``:
    as before."""

    seq: int
    time: float
    actor: str
    route: str
    revision: str
    content: str
    before: Phase | None
    after: GateState
    reason: str
    findings: Assessment | None
    rules: Rules | None
    previous: str
    switches: str | None = None


def digest(body: bytes) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(body).hexdigest()


class GateStore(Protocol):
    """Where the gate's memory lives. Every write is durable when the call returns, and whole after any crash.

    Reads of what is not there raise UnknownRevision; a file that does not agree with itself raises StoreDamaged.
    """

    def submit(self, revision: Revision, transition: Transition) -> GateState:
        """Keep a new revision together with its first state. Raises StaleWrite where it is known already."""

    def commit(self, transitions: Sequence[Transition], kills: Sequence[Kill] | None = None) -> list[GateState]:
        """Write all of them or none, in order; the states as stored, with their new versions.

        ``kills``: what is off from now on, and nothing else, in the same write; ``None``: what was off stays off.
        Raises StaleWrite where a state is no longer the version that the move began from, and IllegalMove where a route
        would get two active revisions or two canaries, or where ``kills`` come without a line of the log.
        """

    def save_evidence(self, state: GateState, evidence: Evidence) -> None:
        """Keep what was observed since, without a transition. Raises StaleWrite like ``commit``."""

    def state(self, route: str, revision: str) -> GateState:
        """The state of one revision; its ``version`` is the ETag."""

    def states(self, route: str | None = None) -> list[GateState]:
        """All states, of one route or of all, oldest first."""

    def revision(self, route: str, revision: str) -> Revision:
        """The content of one revision."""

    def active(self) -> list[Revision]:
        """What serves: the active revision of each route, in the order of their positions."""

    def evidence(self, route: str, revision: str) -> Evidence:
        """What was observed of one revision."""

    def kills(self) -> list[Kill]:
        """What is switched off, in the order in which that came."""

    def log(self, *, after: int = 0, limit: int = 1000) -> list[AuditEntry]:
        """Entries with a ``seq`` above ``after``, in order."""

    def verify(self) -> int:
        """Walk the chain, and compare its end with every state; the number of entries. Raises StoreDamaged."""

    def close(self) -> None:
        """Let go of the file."""
