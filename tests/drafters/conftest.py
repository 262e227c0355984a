"""A row without an engine, and what the host tells a loader."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from specproxy.drafters.base import DraftBatch, DraftContext, Drafter, DraftRow


@dataclass
class FakeHost:
    vocab_size: int = 100
    max_model_len: int = 2048


class Bench:
    """Drives one drafter over one sequence as the engine would."""

    def __init__(self, drafter: Drafter, prompt: Sequence[int], prediction: Sequence[int] = (), k: int = 8) -> None:
        self.drafter = drafter
        self.tokens = list(prompt)
        self.row = DraftRow("s", self.tokens, len(prompt), k, "g", _no_sampler(), prediction=list(prediction))
        self.batch = DraftBatch.allocate(1, 64)
        drafter.prefill(DraftContext([self.row]))

    def propose(self, k: int | None = None) -> list[int]:
        """Tokens of the guess; every parent stands before its child."""
        if k is not None:
            self.row.k = k
        self.drafter.propose(DraftContext([self.row]), self.batch)
        n = int(self.batch.n[0])
        assert 0 <= n <= self.row.k
        assert all(-1 <= parent < i for i, parent in enumerate(self.batch.parents[0, :n]))
        return [int(token) for token in self.batch.tokens[0, :n]]

    def commit(self, tokens: Sequence[int]) -> None:
        """The sequence goes on with ``tokens``."""
        self.tokens += tokens
        self.drafter.commit(DraftContext([self.row]))

    def accept(self, answer: Sequence[int]) -> int:
        """One step: walk the guess against ``answer``, commit what agrees and the bonus token; returns accepted."""
        self.propose()
        n, parents, tokens = int(self.batch.n[0]), self.batch.parents[0], self.batch.tokens[0]
        node, accepted = -1, 0
        while accepted < len(answer) - 1:
            child = [i for i in range(n) if parents[i] == node and tokens[i] == answer[accepted]]
            if not child:
                break
            node = child[0]
            accepted += 1
        self.commit(answer[: accepted + 1])
        return accepted


def _no_sampler() -> Any:
    """Host drafters never look at it."""
    return SimpleNamespace()


@pytest.fixture(scope="session")
def host() -> FakeHost:
    """A target with a hundred ids."""
    return FakeHost()


@pytest.fixture(scope="session")
def bench() -> Callable[..., Bench]:
    """Makes benches; of session scope, so that hypothesis may use it."""
    return Bench
