"""Backend: what produces tokens. The engine is one; an existing server behind us will be another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from specproxy.vocabulary import Delta, Submission

Deliver = Callable[[Delta], None]
"""Takes the next delta of a sequence; called from the event loop, must not wait."""


class Backend(Protocol):
    """Source of answers, named as policies name it."""

    name: str

    @property
    def ready(self) -> bool:
        """Whether a submission would be worked on now."""
        ...

    def start(self, submission: Submission, deliver: Deliver) -> None:
        """Generate one sequence; its deltas go to ``deliver``, the last with a finish reason.

        Raises EngineUnavailable when nothing can be served; errors of the sequence arrive as a Delta.
        """
        ...

    def finish(self, sequence_id: str) -> None:
        """End a sequence early because its answer is complete (a stop string): one last Delta follows, without tokens,
        with the counts so far where the backend has them. Unknown ids are ignored."""
        ...

    def cancel(self, sequence_id: str) -> None:
        """Abort a sequence that nobody waits for any more; nothing of it follows. Unknown ids are ignored."""
        ...

    async def close(self) -> None:
        """Abort what runs and free what is held."""
        ...
