"""Drafting in lanes on the kernels themselves, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.drafters.lane_life import Life, Place, Rounds, Start, house


@pytest.mark.parametrize(("kind", "temperature"), [("eagle3", 0.8), ("medusa", 0.0)])
def test_kernels_draft_in_lanes_what_rows_draft(kind: str, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of two lanes beside a dead one, at entry and after a round, are those of rows and the plain forms."""
    monkeypatch.delenv("TRITON_INTERPRET")
    with torch.no_grad():
        home, starts = house(Place()), [Start(0, 20), Start(1, 5)]
        plain, other = (Life(home, kind, starts, temperature) for _ in range(2))
        rounds = Rounds(other, [1, None, 0], 3, 2)
        for counts in ([2, 1], [1, 3]):
            expected = plain.propose(2)
            monkeypatch.setenv("TRITON_INTERPRET", "1")
            assert rounds.draft() == expected
            monkeypatch.delenv("TRITON_INTERPRET")
            rounds.commit(counts)
            for number, count in enumerate(counts):
                plain.commit(number, count)
