"""PolicySet: a directory of policy files, compiled; ``decide`` turns a request's facts into a Verdict."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from specproxy.policy.catalogue import Catalogue
from specproxy.policy.facts import Facts
from specproxy.vocabulary import Decision


class EffectiveLimits(Struct, frozen=True):
    """Limits of the route that a request was given to; ``None``: none. A request without ``max_tokens`` gets it from
    here; ``timeout_s`` in seconds."""

    max_tokens: int | None
    prompt_tokens: int | None
    tool_calls: int | None
    timeout_s: float | None


class Verdict(Struct, frozen=True):
    """What was decided about one request. ``decision.revision`` is 64 hex digits; ``overridden``: by the request."""

    decision: Decision
    limits: EffectiveLimits
    overridden: bool = False


class PolicySet:
    """Immutable; a reload makes a new one. ``hash``: SHA-256 of the set. ``warnings``: one line each, as of loading."""

    directory: Path
    hash: str
    warnings: tuple[str, ...]

    @classmethod
    def load(cls, directory: Path, catalogue: Catalogue) -> PolicySet:
        """Read, check and compile every ``*.yaml`` of ``directory``. Raises PolicyError with all problems found."""
        raise NotImplementedError

    @property
    def regex_timeouts(self) -> int:
        """How often a regular expression ran out of time, since loading; it then counted as no match."""
        raise NotImplementedError

    def decide(self, facts: Facts) -> Verdict:
        """The first route that matches decides. Raises InvalidRequest where a limit is exceeded, or where the request's
        own override is malformed or not allowed."""
        raise NotImplementedError
