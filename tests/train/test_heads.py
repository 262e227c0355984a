from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from specproxy.heads.base import TargetFacts
from specproxy.heads.loading import read_head
from specproxy.heads.weights import read_tensors
from specproxy.models.loading import load_model
from specproxy.train.draft import DraftOptions, DraftRecipe
from specproxy.train.eagle3 import Eagle3Recipe
from specproxy.train.eagle3_head import Eagle3Options, count_tokens, draft_vocabulary
from specproxy.train.loop import Schedule, train
from specproxy.train.medusa import MedusaOptions, MedusaRecipe
from specproxy.train.packing import Batch, Document
from specproxy.train.recipe import Recipe
from specproxy.train.target import FrozenTarget
from tests.train.conftest import LENGTH

SMALL = Eagle3Options(draft_vocab=128, hidden=(2, 5, 9), steps=3, intermediate_size=64)


def facts(target: FrozenTarget) -> TargetFacts:
    """What the engine would give a head."""
    return TargetFacts(
        embed=target.embed,
        head=target.logits,
        config=target.config,
        folder=target.folder,
        hidden_size=target.config.hidden_size,
        num_layers=target.config.num_hidden_layers,
        vocab_size=target.config.vocab_size,
        dtype=torch.float32,
        device="cpu",
    )


def learn(recipe: Recipe, documents: list[Document], folder: Path, steps: int, lr: float = 2e-3) -> list[float]:
    """Losses."""
    schedule = Schedule(steps=steps, rows=3, length=LENGTH, lr=lr)
    return train(recipe, documents, schedule, folder, device="cpu").losses


def state(recipe: Recipe) -> dict[str, Tensor]:
    """Weights as bf16 keeps them."""
    return {n: t.bfloat16().float() if t.is_floating_point() else t for n, t in recipe.module.state_dict().items()}


def test_an_eagle3_head_learns_and_its_files_load(
    tmp_path: Path, target: FrozenTarget, documents: list[Document], batch: Batch
) -> None:
    """Loss falls and guesses get better; the strict loader reads the file, its captured states and vocabulary; what is
    read back guesses the same."""
    torch.manual_seed(0)
    recipe = Eagle3Recipe.start(target, documents, SMALL)
    before = recipe.guess(batch)
    losses = learn(recipe, documents, tmp_path, 12)
    after = recipe.guess(batch)
    assert losses[-1] < 0.6 * losses[0]
    assert (after.right & after.counted).sum() > (before.right & before.counted).sum()
    recipe.save(tmp_path)
    head = read_head(str(tmp_path), facts(target)).head
    assert (head.spec.kind, head.spec.hidden, head.spec.window) == ("eagle3", (2, 5, 9), 1024)
    assert head.spec.ids is not None
    assert (
        head.spec.ids.tolist()
        == draft_vocabulary(count_tokens(documents, target.config.vocab_size), 128, target.eos_ids).tolist()
    )
    again = Eagle3Recipe.load(target, tmp_path, SMALL)
    assert all(torch.equal(t, again.module.state_dict()[n]) for n, t in state(recipe).items())


def test_a_head_with_the_whole_vocabulary_has_no_tables(
    tmp_path: Path, target: FrozenTarget, documents: list[Document], batch: Batch
) -> None:
    """As published heads: d2t and t2d are left out where they would say nothing, and both readers do without."""
    recipe = Eagle3Recipe.start(target, documents, replace(SMALL, draft_vocab=10**6))
    recipe.save(tmp_path)
    assert not {"d2t", "t2d"} & set(read_tensors("here", [tmp_path / "model.safetensors"]))
    assert read_head(str(tmp_path), facts(target)).head.spec.ids is None
    again = Eagle3Recipe.load(target, tmp_path, SMALL)
    assert again.module.state_dict().keys() == recipe.module.state_dict().keys()
    assert again.guess(batch).counted.any()


def test_the_draft_vocabulary_is_the_most_frequent_tokens_and_those_that_end(documents: list[Document]) -> None:
    """Only tokens that count are counted; ids ascend; an id that ends answers is in even if it never came."""
    counts = count_tokens([Document((5, 5, 5, 7, 7, 3), 3, "s")], 16)
    assert counts.nonzero()[:, 0].tolist() == [3, 7]
    assert draft_vocabulary(counts, 2, [15]).tolist() == [7, 15]
    assert draft_vocabulary(counts, 3, [15]).tolist() == [3, 7, 15]


def test_tokens_outside_of_the_draft_vocabulary_teach_nothing(
    target: FrozenTarget, documents: list[Document], batch: Batch
) -> None:
    """With a vocabulary that holds none of the target's choices the loss is zero, and every guess is wrong."""
    recipe = Eagle3Recipe.start(target, documents, SMALL)
    recipe._head.t2d.zero_()
    recipe._head.d2t.fill_(8000 - 128)
    outcome = recipe.learn(batch)
    assert outcome.loss.item() == 0
    assert outcome.guesses.counted.any()
    assert not (outcome.guesses.right & outcome.guesses.counted).any()


@pytest.mark.parametrize("layout", ["shared", "full"])
def test_medusa_heads_learn_and_their_files_load(
    tmp_path: Path, target: FrozenTarget, documents: list[Document], batch: Batch, layout: str
) -> None:
    """Both layouts: loss falls, the file has the published names, the strict loader gives the trainer's logits."""
    recipe = MedusaRecipe(target, MedusaOptions(heads=2, layout="full" if layout == "full" else "shared"))
    losses = learn(recipe, documents, tmp_path, 8)
    assert losses[-1] < 0.7 * losses[0]
    recipe.save(tmp_path)
    head = read_head(str(tmp_path), facts(target)).head
    assert (head.spec.kind, head.spec.steps) == ("medusa", 2)
    again = MedusaRecipe.load(target, tmp_path)
    assert ("0.1.weight" in again.module.state_dict()) is (layout == "full")
    final = target.states(batch).final[0, :5]
    ours = [again._logits(module, final) for module in again._heads]
    for mine, theirs in zip(ours, head.logits(final), strict=True):  # type: ignore[call-arg, arg-type]
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_draft_model_learns_and_loads_as_any_other(
    tmp_path: Path, target: FrozenTarget, documents: list[Document]
) -> None:
    """Loss falls from a random start; the folder is a model with the target's tokenizer; it can be trained further."""
    torch.manual_seed(0)
    options = DraftOptions(hidden_size=64, layers=1, heads=2, intermediate_size=64, steps=3)
    recipe = DraftRecipe.start(target, options)
    losses = learn(recipe, documents, tmp_path / "state", 6, lr=1e-2)
    assert losses[-1] < 0.8 * losses[0]
    recipe.save(tmp_path / "draft")
    model, folder = load_model(str(tmp_path / "draft"), "draft", device="cpu")
    assert model.spec.vocab_size == target.config.vocab_size
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    again = DraftRecipe.load(target, folder, options)
    assert all(torch.equal(t, again.module.state_dict()[n]) for n, t in state(recipe).items())
    assert any(p.requires_grad for p in again.module.parameters())
