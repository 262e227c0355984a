from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specproxy.errors import StartError
from specproxy.train.loop import CHECKPOINT, Progress, Schedule, train
from specproxy.train.medusa import MedusaOptions, MedusaRecipe
from specproxy.train.packing import Batch, Document
from specproxy.train.recipe import Outcome
from specproxy.train.target import FrozenTarget
from tests.train.conftest import LENGTH

SCHEDULE = Schedule(steps=6, rows=1, length=LENGTH, lr=1e-3, save_every=100)


def recipe_for(target: FrozenTarget) -> MedusaRecipe:
    """A small one."""
    return MedusaRecipe(target, MedusaOptions(heads=2))


def weights(recipe: MedusaRecipe) -> torch.Tensor:
    """All of them."""
    return torch.cat([p.detach().flatten() for p in recipe.module.parameters()])


def test_a_run_that_stopped_ends_as_one_that_did_not(
    tmp_path: Path, target: FrozenTarget, documents: list[Document]
) -> None:
    """Two steps, a new process' worth of nothing kept, the rest: the same bits as six steps in one go."""
    whole = recipe_for(target)
    result = train(whole, documents, SCHEDULE, tmp_path / "whole", device="cpu")
    first = recipe_for(target)
    begun = train(first, documents, SCHEDULE, tmp_path / "parts", device="cpu", stop_after=2)
    second = recipe_for(target)
    ended = train(second, documents, SCHEDULE, tmp_path / "parts", device="cpu")
    assert (begun.finished, ended.finished) == (False, True)
    assert begun.losses + ended.losses == result.losses
    assert torch.equal(weights(whole), weights(second))
    assert not torch.equal(weights(whole), weights(first))


def test_an_interruption_leaves_a_checkpoint(tmp_path: Path, target: FrozenTarget, documents: list[Document]) -> None:
    """Ctrl-C after three steps is as good as stopping after three."""
    seen: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        seen.append(progress)
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe_for(target), documents, SCHEDULE, tmp_path, device="cpu", report=interrupt)
    train(recipe_for(target), documents, SCHEDULE, tmp_path, device="cpu", report=seen.append)
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5, 6]
    assert all(len(progress.acceptance) == 2 for progress in seen)


def test_a_checkpoint_of_another_run_is_refused(
    tmp_path: Path, target: FrozenTarget, documents: list[Document]
) -> None:
    """Other options, and a file that is none, end in one message that says what to do."""
    train(recipe_for(target), documents, SCHEDULE, tmp_path, device="cpu", stop_after=1)
    with pytest.raises(StartError, match="other options; delete it"):
        train(recipe_for(target), documents, replace(SCHEDULE, lr=1.0), tmp_path, device="cpu")
    (tmp_path / CHECKPOINT).write_bytes(b"no")
    with pytest.raises(StartError, match="cannot be read as a checkpoint"):
        train(recipe_for(target), documents, SCHEDULE, tmp_path, device="cpu")


def test_prompts_that_fill_the_rows_are_refused(tmp_path: Path, target: FrozenTarget) -> None:
    """Where no answer begins within a row there is nothing to learn, and no endless search for it."""
    with pytest.raises(StartError, match="longer rows or shorter prompts"):
        train(recipe_for(target), [Document((1,) * 200, 190, "s")], SCHEDULE, tmp_path, device="cpu")


def test_gradients_are_clipped(
    tmp_path: Path, target: FrozenTarget, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss a million times as large moves the weights no further than the clipped one."""
    clipped = replace(SCHEDULE, steps=1, clip=1e-9, weight_decay=0.0)
    plain, loud = recipe_for(target), recipe_for(target)
    learn = loud.learn

    def louder(batch: Batch) -> Outcome:
        outcome = learn(batch)
        return Outcome(outcome.loss * 1e6, outcome.guesses)

    monkeypatch.setattr(loud, "learn", louder)
    train(plain, documents, clipped, tmp_path / "a", device="cpu")
    train(loud, documents, clipped, tmp_path / "b", device="cpu")
    torch.testing.assert_close(weights(plain), weights(loud), rtol=1e-3, atol=1e-7)


def test_the_learning_rate_rises_and_falls() -> None:
    """Linear to the top in the first tenth, then down to the floor."""
    schedule = Schedule(steps=100, warmup=0.1, floor=0.05)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(factors[9:]))
    assert 0.05 < factors[-1] < 0.06


def test_a_run_learns_where_an_engine_has_turned_gradients_off(
    tmp_path: Path, target: FrozenTarget, documents: list[Document]
) -> None:
    """An engine in the same process computes no gradients, for good; a run does all the same."""
    recipe, before = recipe_for(target), weights(recipe_for(target))
    with torch.no_grad():
        train(recipe, documents, replace(SCHEDULE, steps=1), tmp_path, device="cpu")
    assert not torch.equal(weights(recipe), before)
