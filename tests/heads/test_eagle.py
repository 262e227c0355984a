from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specproxy.errors import ModelLoadError
from specproxy.models.base import FINAL
from tests.heads.checkpoints import Checkpoint, FakeTarget, Sizes, eagle1, fake_target
from tests.heads.reference import Eagle, Shape, arrays
from tests.heads.running import assert_drafts_as, load, sample

SIZES = Sizes()
SHAPE = Shape(SIZES.heads, SIZES.kv_heads, SIZES.head_dim, SIZES.eps)


def reference(checkpoint: Checkpoint, target: FakeTarget, layers: int = 1) -> Eagle:
    """The reference of a checkpoint."""
    embedding = checkpoint.tensors.get("embed_tokens.weight", target.embedding)
    return Eagle(arrays(checkpoint.tensors), SHAPE, embedding.numpy(), target.output.numpy(), layers)


@pytest.mark.parametrize("length", [1, 2, 19, 37])
@pytest.mark.parametrize(("layers", "bias"), [(1, True), (1, False), (2, True), (3, False)])
def test_a_head_computes_what_its_reference_does(layers: int, length: int, tmp_path: Path, *, bias: bool) -> None:
    """With and without the bias of ``fc``, of one layer or several, states and scores are the reference's."""
    target = fake_target(SIZES)
    checkpoint = eagle1(SIZES, 1, layers, bias=bias)
    head = load(checkpoint, tmp_path, target.facts)
    taps, tokens = sample(head, SIZES.vocab, SIZES.hidden, length)
    assert_drafts_as(reference(checkpoint, target, layers), head, taps, tokens, steps=3, chunk=length)


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_entries_may_come_in_parts(chunk: int, tmp_path: Path) -> None:
    """However the entries are cut, across pages that lie apart, states and scores are the whole sequence's."""
    target = fake_target(SIZES)
    checkpoint = eagle1(SIZES, 1, 2)
    head = load(checkpoint, tmp_path, target.facts)
    taps, tokens = sample(head, SIZES.vocab, SIZES.hidden, 33)
    assert_drafts_as(reference(checkpoint, target, 2), head, taps, tokens, steps=2, chunk=chunk, first=11)


def test_the_targets_embedding_serves_where_the_file_has_none(tmp_path: Path) -> None:
    """A file without a table drafts with the target's."""
    target = fake_target(SIZES)
    checkpoint = eagle1(SIZES).without("embed_tokens.weight")
    head = load(checkpoint, tmp_path, target.facts)
    taps, tokens = sample(head, SIZES.vocab, SIZES.hidden, 4)
    assert_drafts_as(reference(checkpoint, target), head, taps, tokens, steps=1, chunk=4)


def test_a_bias_that_is_not_ruled_out_must_be_there(tmp_path: Path) -> None:
    """Without "bias": false in config.json a file that lacks fc.bias is refused, by name."""
    with pytest.raises(ModelLoadError, match=r"fc\.bias is missing.*\"bias\": false"):
        load(eagle1(SIZES).without("fc.bias"), tmp_path, fake_target(SIZES).facts)


def test_a_bias_that_is_ruled_out_has_no_place(tmp_path: Path) -> None:
    """With "bias": false an fc.bias is not left out silently."""
    with pytest.raises(ModelLoadError, match=r"fc\.bias has no place"):
        load(eagle1(SIZES).saying(bias=False), tmp_path, fake_target(SIZES).facts)


def test_the_description_names_what_the_engine_must_provide(tmp_path: Path) -> None:
    """The final state, KV of every layer, no vocabulary of its own, any number of steps."""
    spec = load(eagle1(SIZES, layers=2), tmp_path, fake_target(SIZES).facts).spec
    assert (spec.kind, spec.hidden, spec.ids, spec.steps) == ("eagle", (FINAL,), None, None)
    assert [(s.heads, s.k_dim) for s in spec.layers] == [(2, 8), (2, 8)]


def test_the_state_goes_on_as_it_is(tmp_path: Path) -> None:
    """What the output takes and what the next step takes are the same, not normed."""
    target = fake_target(SIZES)
    head = load(eagle1(SIZES), tmp_path, target.facts)
    taps, _ = sample(head, SIZES.vocab, SIZES.hidden, 3)
    assert head.fuse(taps) is taps
    assert torch.equal(head.logits(taps), target.facts.head(taps))
