from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.tables import read_embedding, read_ends, read_ids
from specproxy.heads.weights import Weights
from tests.heads.checkpoints import Sizes, fake_target

SIZES = Sizes()
TARGET = fake_target(SIZES)


def weights(**tensors: Tensor) -> Weights:
    """A checkpoint of these tensors; ``__`` in a name stands for a dot."""
    return Weights("here", {n.replace("__", "."): t for n, t in tensors.items()}, torch.float64, "cpu")


def mask_of(kept: Tensor, vocab: int) -> Tensor:
    """The mask [vocab] of kept ids."""
    mask = torch.zeros(vocab, dtype=torch.bool)
    mask[kept] = True
    return mask


@given(st.sets(st.integers(0, 59), min_size=1))
@settings(max_examples=60, deadline=None)
def test_offsets_lead_back_to_the_ids_they_were_made_of(chosen: set[int]) -> None:
    """Whatever ids were kept, offsets and mask as trained give them back, in order."""
    kept = torch.tensor(sorted(chosen))
    found = read_ids(weights(d2t=kept - torch.arange(len(kept)), t2d=mask_of(kept, 60)), len(kept), 60)
    assert torch.equal(torch.arange(60) if found is None else found, kept)


@given(st.sets(st.integers(0, 59), min_size=2, max_size=40), st.data())
@settings(max_examples=60, deadline=None)
def test_an_offset_that_is_off_is_noticed(chosen: set[int], data: st.DataObject) -> None:
    """Any one wrong offset contradicts the mask, meets another id, or leaves the vocabulary."""
    kept = torch.tensor(sorted(chosen))
    offsets = kept - torch.arange(len(kept))
    offsets[data.draw(st.integers(0, len(kept) - 1))] += data.draw(st.integers(-70, 70).filter(bool))
    with pytest.raises(ModelLoadError, match=r"^here: d2t"):
        read_ids(weights(d2t=offsets, t2d=mask_of(kept, 60)), len(kept), 60)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"d2t": torch.tensor([0, 60])}, r"d2t leads to target ids 0 to 61; expected 0 to 59.*does not hold offsets"),
        ({"d2t": torch.tensor([0, -2])}, r"target ids -1 to 0; expected 0 to 59"),
        ({"d2t": torch.tensor([1, 0])}, "leads two ids to one target id"),
        ({"d2t": torch.tensor([0.0, 1.0])}, r"d2t holds torch\.float64; expected integer offsets"),
        ({"d2t": torch.tensor([0, 1, 2])}, r"d2t has shape \[3\]; expected \[2\]"),
        ({"d2t": torch.tensor([4, 4]), "t2d": mask_of(torch.tensor([4, 6]), 60)}, "contradict each other"),
        ({"d2t": torch.tensor([4, 4]), "t2d": mask_of(torch.tensor([4, 5, 6]), 60)}, "contradict each other"),
        ({"d2t": torch.tensor([4, 4]), "t2d": mask_of(torch.tensor([4, 5]), 61)}, r"t2d has shape \[61\]"),
        ({}, "tensor d2t is missing"),
    ],
)
def test_a_map_that_cannot_be_right_is_refused(tensors: dict[str, Tensor], message: str) -> None:
    """Every way in which d2t and t2d can be wrong has its words."""
    with pytest.raises(ModelLoadError, match=message):
        read_ids(weights(**tensors), 2, 60)


def test_a_map_of_the_whole_vocabulary_is_none() -> None:
    """A head that knows every token has the target's ids, with or without a table that says so."""
    everything = {"d2t": torch.zeros(5, dtype=torch.int64), "t2d": torch.ones(5, dtype=torch.bool)}
    assert read_ids(weights(), 5, 5) is None
    assert read_ids(weights(**everything), 5, 5) is None
    assert read_ids(weights(t2d=everything["t2d"]), 5, 5) is None


def test_a_mask_without_its_offsets_is_refused() -> None:
    """A mask that leaves tokens out needs the table that goes with it."""
    with pytest.raises(ModelLoadError, match="t2d leaves target ids out and tensor d2t is missing"):
        read_ids(weights(t2d=mask_of(torch.tensor([1, 2]), 5)), 5, 5)


def test_a_copy_of_the_targets_embedding_is_not_kept() -> None:
    """A table equal to the target's, in every row, costs no memory; one that differs in one number stays."""
    table = TARGET.embedding.clone()
    assert read_embedding(weights(embed_tokens__weight=table), TARGET.facts, SIZES.hidden) is None
    table[-1, -1] += 1
    own = read_embedding(weights(embed_tokens__weight=table), TARGET.facts, SIZES.hidden)
    assert own is not None
    assert torch.equal(own, table)


@pytest.mark.parametrize(
    ("tensors", "config", "width", "message"),
    [
        ({}, {}, 8, r"embed_tokens\.weight is missing; expected \[96, 8\]"),
        ({"embed_tokens__weight": torch.ones(50, 24)}, {}, 24, "has 50 rows; the target's vocabulary has 96"),
        ({"embed_tokens__weight": torch.ones(96, 8)}, {}, 24, r"has shape \[96, 8\]; expected \[96, 24\]"),
        ({}, {"vocab_size": 50}, 24, "config.json says vocab_size 50; the target has 96.*choose a head"),
        ({}, {"draft_vocab_size": 120}, 24, "guesses among 120 tokens; the target has only 96"),
        ({}, {"draft_vocab_size": 40}, 24, r"lm_head\.weight is missing; expected \[40, 24\].*vocabulary of its own"),
        ({"embed_tokens__weight": torch.ones(96, 8)}, {}, 8, r"lm_head\.weight is missing.*takes states 24 wide"),
        ({"lm_head__weight": torch.ones(30, 24)}, {"draft_vocab_size": 40}, 24, r"has shape \[30, 24\]"),
    ],
)
def test_ends_that_do_not_fit_are_refused(
    tensors: dict[str, Tensor], config: dict[str, Any], width: int, message: str
) -> None:
    """Embeddings and outputs of another vocabulary or width are told apart, each with what was expected."""
    with pytest.raises(ModelLoadError, match=message):
        read_ends(weights(**tensors), config, TARGET.facts, width)


def test_the_vocabulary_is_the_outputs_where_the_configuration_has_none() -> None:
    """Without draft_vocab_size the rows of lm_head count."""
    tensors = {"lm_head__weight": torch.ones(2, 24), "d2t": torch.tensor([3, 3])}
    ends = read_ends(weights(**tensors), {}, TARGET.facts, 24)
    assert ends.ids is not None
    assert ends.ids.tolist() == [3, 4]


def test_a_tied_head_of_a_tied_target_has_the_targets_output() -> None:
    """Where the target's output is its embedding there is nothing to copy."""
    facts = fake_target(SIZES, tie_word_embeddings=True).facts
    assert read_ends(weights(), {"tie_word_embeddings": True}, facts, 24).output is facts.head
