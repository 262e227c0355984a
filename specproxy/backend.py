"""Backend: what produces tokens. The engine is one; an existing server behind us will be another."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from specproxy.vocabulary import Delta, Submission


class Backend(Protocol):
    """Source of answers, named as policies name it."""

    name: str

    @property
    def ready(self) -> bool:
        """Whether a submission would be worked on now."""
        ...

    def generate(self, submission: Submission) -> AsyncGenerator[Delta, None]:
        """Deltas of one sequence, the last with a finish reason. Closing the generator aborts the sequence.

        Raises EngineUnavailable when nothing can be served; errors of the sequence arrive as a Delta.
        """
        ...

    def finish(self, sequence_id: str) -> None:
        """End a sequence early because its answer is complete (a stop string): its iterator yields one last Delta,
        without tokens, with the counts so far where the backend has them. Unknown ids are ignored."""
        ...

    async def close(self) -> None:
        """Abort what runs and free what is held."""
        ...
