"""Heads of the house target, grown, guess for the grown target what they guessed for the small one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.base import ParallelHead, RecurrentHead
from specproxy.heads.loading import LoadedHead, read_head
from specproxy.models.base import FINAL
from specproxy.models.grown.heads import grow_head
from specproxy.models.grown.shapes import SHAPES, layer_map
from specproxy.models.loading import find_model
from tests.grown.running import REAL, ZERO, Lean, assert_same, random_ids
from tests.heads.running import Run

GUESSES = 4
ROLES = {"eagle3": "eagle3", "mtp": "target", "medusa": "medusa"}


def target_config() -> dict[str, Any]:
    """The house target's configuration."""
    return cast(dict[str, Any], json.loads((find_model("house", "target") / "config.json").read_text()))


def grow(kind: str, shape: str, folder: Path) -> Path:
    """The folder of a grown head."""
    head = grow_head(find_model("house", ROLES[kind]), target_config(), SHAPES[shape], "cpu", torch.float64)
    assert head.kind == kind
    head.write(folder)
    return folder


def read_small(kind: str, target: Lean) -> LoadedHead:
    """The house target's head, as it is."""
    return read_head(str(find_model("house", ROLES[kind])), target.facts())


def draft(loaded: LoadedHead, target: Lean, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States and scores of the known ids for every position but the last, then of its own guesses."""
    head = cast(RecurrentHead, loaded.head)
    taps = torch.cat(target.run(ids, head.spec.hidden)[1], 1)[:-1]
    run, states, scores = Run(head), [], []
    known = REAL if head.spec.ids is None else int((head.spec.ids < REAL).sum())
    with torch.inference_mode():
        state, score = run.enter(ids[1:], head.fuse(taps))
        for _ in range(GUESSES):
            states.append(state)
            scores.append(score[:, :known])
            guess = scores[-1][-1:].argmax(1)
            guess = guess if head.spec.ids is None else head.spec.ids[guess]
            state, score = run.enter(guess, state[-1:])
    return torch.cat(states), torch.cat(scores)


@pytest.mark.parametrize("kind", ["eagle3", "mtp"])
def test_recurrent_heads_have_the_same_scores(kind: str, small: Lean, large: tuple[str, Lean], tmp_path: Path) -> None:
    """From the grown target's states, and from their own behind them, grown heads score known tokens as before."""
    ids, (shape, target) = random_ids(), large
    expected = draft(read_small(kind, small), small, ids)
    loaded = read_head(str(grow(kind, shape, tmp_path / kind)), target.facts())
    assert loaded.warnings == ()
    states, scores = draft(loaded, target, ids)
    width = small.model.spec.hidden_size
    assert_same(scores, expected[1])
    assert_same(states[:, :width], expected[0])
    assert states[:, width:].abs().max() < ZERO


def test_medusa_has_the_same_scores(small: Lean, large: tuple[str, Lean], tmp_path: Path) -> None:
    """Each of its heads scores known tokens as before."""
    ids, (shape, target) = random_ids(), large
    both = []
    for model, path in (
        (small, find_model("house", "medusa")),
        (target, grow("medusa", shape, tmp_path / "medusa")),
    ):
        head = cast(ParallelHead, read_head(str(path), model.facts()).head)
        with torch.inference_mode():
            both.append(torch.stack([score[:, :REAL] for score in head.logits(model.run(ids, [FINAL])[1][0])]))
    assert_same(both[1], both[0])


def test_eagle3_has_its_published_size(tmp_path: Path) -> None:
    """Tensors, their shapes and the configuration are those of a published head of the target's size."""
    head = grow_head(find_model("house", "eagle3"), target_config(), SHAPES["tiny-8b"], "cpu", torch.bfloat16)
    assert head.config["eagle_aux_hidden_state_layer_ids"] == [layer_map(10, 12)[state] for state in (2, 5, 9)]
    assert head.config["num_hidden_layers"] == 1
    shape = SHAPES["tiny-8b"]
    assert {name.removeprefix("midlayer."): list(tensor.shape) for name, tensor in head.tensors.items()} == {
        "fc.weight": [shape.hidden, 3 * shape.hidden],
        "self_attn.q_proj.weight": [shape.heads * 128, 2 * shape.hidden],
        "self_attn.k_proj.weight": [shape.kv_heads * 128, 2 * shape.hidden],
        "self_attn.v_proj.weight": [shape.kv_heads * 128, 2 * shape.hidden],
        "self_attn.o_proj.weight": [shape.hidden, shape.heads * 128],
        "mlp.gate_proj.weight": [shape.intermediate, shape.hidden],
        "mlp.up_proj.weight": [shape.intermediate, shape.hidden],
        "mlp.down_proj.weight": [shape.hidden, shape.intermediate],
        "input_layernorm.weight": [shape.hidden],
        "hidden_norm.weight": [shape.hidden],
        "post_attention_layernorm.weight": [shape.hidden],
        "norm.weight": [shape.hidden],
        "lm_head.weight": [shape.draft_vocab, shape.hidden],
        "d2t": [shape.draft_vocab],
        "t2d": [shape.vocab],
    }
    assert {tensor.dtype for name, tensor in head.tensors.items() if name not in ("d2t", "t2d")} == {torch.bfloat16}


def test_tokens_that_eagle3_lacks_stand_for_padding() -> None:
    """Known draft ids keep their target ids; the others lead to ids that the target's real ones end before."""
    folder = find_model("house", "eagle3")
    before = load_file(folder / "model.safetensors")["d2t"]
    after = grow_head(folder, target_config(), SHAPES["tiny-8b"], "cpu", torch.float32).tensors["d2t"]
    assert torch.equal(after[: len(before)], before)
    ids = after + torch.arange(len(after))
    assert torch.equal(ids[len(before) :], REAL + torch.arange(len(after) - len(before)))


def test_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    """A head with a part that nothing is known about is not grown to something that guesses badly."""
    folder = find_model("house", "eagle3")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "midlayer.self_attn.q_norm.weight": torch.ones(64)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"tensor midlayer\.self_attn\.q_norm\.weight"):
        grow_head(tmp_path, target_config(), SHAPES["tiny-8b"], "cpu", torch.float32)


@pytest.mark.parametrize("changes", [{"draft_vocab": 2000}, {"vocab": 9000}])
def test_a_vocabulary_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    """The message names both sides' sizes."""
    shape = replace(SHAPES["tiny-8b"], **changes)
    with pytest.raises(ModelLoadError, match="2048 draft tokens and 8192 of the target do not fit"):
        grow_head(find_model("house", "eagle3"), target_config(), shape, "cpu", torch.float32)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """There must be a head to grow."""
    with pytest.raises(ModelLoadError, match="expected a head's folder"):
        grow_head(tmp_path, target_config(), SHAPES["tiny-8b"], "cpu", torch.float32)
