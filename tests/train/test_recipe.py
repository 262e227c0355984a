from __future__ import annotations

import pytest
import torch

from specproxy.train.recipe import Guesses, Tally
from specproxy.train.report import Steps


def test_a_guess_counts_only_where_all_before_it_were_right() -> None:
    """Of four starts: all right, wrong at once, right then wrong, and one that runs into the end of its document."""
    right = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]]).bool()[:, None]
    counted = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()[:, None]
    tally = Tally.of(Guesses(right, counted))
    assert tally.tried.tolist() == [4, 2]
    assert tally.right.tolist() == [3, 1]
    assert tally.conditional == [0.75, 0.5]
    assert tally.chain == [0.75, 0.375]
    assert tally.expected_tokens(2) == 1 + 0.75 + 0.375
    tally.add(tally)
    assert (tally.starts, tally.conditional) == (8, [0.75, 0.5])


def test_speedup_is_tokens_over_steps() -> None:
    """tau / (1 + K c); the best K is where another guess no longer pays, and 0 where none does."""
    tally = Tally(torch.tensor([100.0, 80.0]), torch.tensor([80.0, 8.0]), 100)
    steps = Steps(target_s=0.01, head_s=0.002)
    assert steps.speedup(tally, 1) == pytest.approx(1.8 / 1.2)
    assert steps.speedup(tally, 2) == pytest.approx(1.88 / 1.4)
    assert steps.best(tally) == (1, pytest.approx(1.5))
    assert Steps(0.01, 0.02).best(tally) == (0, 1.0)
