"""Kill switches as a store keeps them: speculation is off, whatever the gate says."""

from __future__ import annotations

from msgspec import Struct


class Kill(Struct, frozen=True):
    """Speculation is off. ``route`` ``None``: on all; ``drafter`` ``None``: of every drafter. Unix seconds."""

    route: str | None
    drafter: str | None
    reason: str
    actor: str
    time: float

    def covers(self, route: str) -> bool:
        """Whether it switches anything off on ``route``."""
        return self.route is None or self.route == route

    @property
    def scope(self) -> tuple[str | None, str | None]:
        """What it switches off; one kill at most of each."""
        return self.route, self.drafter
