from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.base import ParallelHead
from specproxy.heads.loading import read_head
from specproxy.models.base import FINAL
from tests.heads.checkpoints import Checkpoint, Draw, Sizes, fake_target, medusa, medusa2
from tests.heads.reference import arrays
from tests.heads.reference import medusa as reference

SIZES = Sizes()
TARGET = fake_target(SIZES)


def load_medusa(checkpoint: Checkpoint, folder: Path) -> ParallelHead:
    """The written checkpoint's heads."""
    head: Any = read_head(str(checkpoint.write(folder)), TARGET.facts).head
    return head  # type: ignore[no-any-return]


def states(rows: int) -> Tensor:
    """Random final states [rows, D]."""
    return Draw(5).normal(rows, SIZES.target_hidden)


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("heads", "blocks"), [(1, 1), (3, 1), (2, 2), (4, 3)])
def test_heads_score_as_their_reference(heads: int, blocks: int, rows: int, tmp_path: Path, *, shared: bool) -> None:
    """Heads of any depth, with outputs of their own or the target's, give the reference's scores."""
    checkpoint = medusa(SIZES, 1, heads, blocks, shared=shared)
    ours = load_medusa(checkpoint, tmp_path).logits(states(rows))
    output = TARGET.output.numpy() if shared else None
    expected = reference(arrays(checkpoint.tensors), states(rows).numpy(), heads, blocks, output)
    assert len(ours) == heads
    for score, wanted in zip(ours, expected, strict=True):
        np.testing.assert_allclose(score.numpy(), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("file", ["medusa_lm_head.pt", "medusa_lm_head.safetensors"])
def test_both_kinds_of_file_are_read(file: str, tmp_path: Path) -> None:
    """The pickled and the safetensors file hold the same heads."""
    checkpoint = replace(medusa(SIZES), file=file)
    expected = reference(arrays(checkpoint.tensors), states(2).numpy(), 3, 1)
    ours = load_medusa(checkpoint, tmp_path).logits(states(2))
    np.testing.assert_allclose(torch.stack(list(ours)).numpy(), np.stack(expected), rtol=1e-9, atol=1e-9)


def test_heads_inside_a_whole_checkpoint_are_found(tmp_path: Path) -> None:
    """Medusa-2 names its heads among the model's tensors, of which nothing else is read."""
    checkpoint = medusa2(SIZES, 3)
    ours = load_medusa(checkpoint, tmp_path).logits(states(2))
    expected = reference(arrays(medusa(SIZES, 3).tensors), states(2).numpy(), 3, 1)
    np.testing.assert_allclose(torch.stack(list(ours)).numpy(), np.stack(expected), rtol=1e-9, atol=1e-9)


def test_heads_are_counted_from_their_names(tmp_path: Path) -> None:
    """A configuration that says 2 does not hide the third head, and the description says so."""
    spec = load_medusa(medusa(SIZES), tmp_path).spec
    assert (spec.kind, spec.steps, spec.hidden, spec.layers) == ("medusa", 3, (FINAL,), ())
    assert spec.reading == "3 heads, where config.json says 2"
    assert spec.verifier == "org/tiny-target"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("1.0.linear.weight", "head 1 has|1.0.linear.weight is missing"),
        ("1.0.linear.bias", r"1\.0\.linear\.bias is missing"),
        ("1.1.weight", r"1\.1\.weight is missing"),
    ],
)
def test_a_missing_tensor_is_named(missing: str, message: str, tmp_path: Path) -> None:
    """A file that lacks a tensor of one head is refused with its name."""
    with pytest.raises(ModelLoadError, match=message):
        load_medusa(medusa(SIZES).without(missing), tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"0": "3"}, r"heads \[1, 2, 3\] have residual blocks; expected 0, 1, 2"),
        ({"0.1": "0.9"}, r"0\.1\.weight is missing|has no place"),
    ],
)
def test_numbers_with_gaps_are_refused(changed: dict[str, str], message: str, tmp_path: Path) -> None:
    """Heads and their layers count from zero."""
    old, new = next(iter(changed.items()))
    found = medusa(SIZES)
    tensors = {new + n[len(old) :] if n.startswith(old) else n: t for n, t in found.tensors.items()}
    with pytest.raises(ModelLoadError, match=message):
        load_medusa(replace(found, tensors=tensors), tmp_path)


def test_heads_of_different_depth_are_refused(tmp_path: Path) -> None:
    """Every head has as many residual blocks as the others."""
    deep = medusa(SIZES, blocks=2).without("1.1.linear.weight", "1.1.linear.bias")
    with pytest.raises(ModelLoadError, match=r"head 1 has residual blocks \[0\]; expected 0 to 1"):
        load_medusa(deep, tmp_path)


def test_another_targets_heads_are_refused(tmp_path: Path) -> None:
    """Other widths and other vocabularies are told apart, and both say what to do."""
    with pytest.raises(ModelLoadError, match=r"takes states 40 wide; the target's hidden_size is 24.*choose heads"):
        load_medusa(medusa(replace(SIZES, target_hidden=40)), tmp_path / "wide")
    with pytest.raises(ModelLoadError, match=r"0\.1\.weight has 64 rows; the target's vocabulary has 96 tokens"):
        load_medusa(medusa(replace(SIZES, vocab=64)), tmp_path / "vocabulary")
