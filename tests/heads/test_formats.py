from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specproxy.errors import ModelLoadError
from specproxy.heads.loading import LoadedHead, read_head
from specproxy.heads.readings import Overrides
from specproxy.models.base import FINAL
from tests.heads.checkpoints import (
    Checkpoint,
    Draw,
    Sizes,
    eagle1,
    fake_target,
    medusa,
    medusa2,
    original_eagle3,
    specforge_eagle3,
    speculators_eagle3,
)

SIZES = Sizes()
TARGET = fake_target(SIZES).facts


def load(checkpoint: Checkpoint, folder: Path, overrides: Overrides | None = None) -> LoadedHead:
    """The written checkpoint."""
    return read_head(str(checkpoint.write(folder)), TARGET, overrides or Overrides())


@pytest.mark.parametrize(
    ("make", "kind", "hidden"),
    [
        (original_eagle3, "eagle3", (2, 6, 9)),
        (specforge_eagle3, "eagle3", (2, 6, 9)),
        (speculators_eagle3, "eagle3", (2, 6, 9)),
        (eagle1, "eagle", (FINAL,)),
        (medusa, "medusa", (FINAL,)),
        (medusa2, "medusa", (FINAL,)),
    ],
)
def test_the_format_is_told_by_the_names(
    make: Callable[[Sizes], Checkpoint], kind: str, hidden: tuple[int, ...], tmp_path: Path
) -> None:
    """Every published layout is recognised, and what it reads is normalised."""
    spec = load(make(SIZES), tmp_path).head.spec
    assert (spec.kind, spec.hidden) == (kind, hidden)


def verifier(**named: Any) -> Checkpoint:
    """speculators' layout with another verifier."""
    found = speculators_eagle3(SIZES)
    return found.saying(speculators_config=found.config["speculators_config"] | {"verifier": named})


def test_a_head_of_another_architecture_is_refused(tmp_path: Path) -> None:
    """The verifier's architecture must be the target's."""
    other = verifier(name_or_path="org/other", architectures=["Qwen3ForCausalLM"])
    with pytest.raises(ModelLoadError, match="trained for org/other of architecture Qwen3ForCausalLM; the target is"):
        load(other, tmp_path)


def test_a_head_of_another_name_is_told(tmp_path: Path) -> None:
    """A target that is only named otherwise (a fine-tune, a moved folder) is served, with a warning."""
    loaded = load(verifier(name_or_path="org/other-target"), tmp_path)
    assert loaded.warnings == ("trained for org/other-target, by name not the target in /models/tiny-target",)
    assert loaded.warnings[0] in loaded.head.spec.reading
    assert loaded.head.spec.verifier == "org/other-target"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("org/Tiny-Target", "/somewhere/else"),
        ("/training/run/base/", "/models/base"),
        ("org/base", "/cache/models--org--base/snapshots/0123abc"),
    ],
)
def test_a_target_is_known_by_any_of_its_names(name: str, folder: str, tmp_path: Path) -> None:
    """As configured, by its folder, or by its place in the hub's cache."""
    path = str(verifier(name_or_path=name).write(tmp_path))
    assert read_head(path, replace(TARGET, folder=Path(folder))).warnings == ()


def test_a_nameless_verifier_is_no_matter(tmp_path: Path) -> None:
    """A configuration that names none is believed."""
    loaded = load(speculators_eagle3(SIZES).saying(speculators_config={}), tmp_path)
    assert (loaded.warnings, loaded.head.spec.verifier) == ((), None)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (["mask_hidden", "layers.0.hidden_norm.weight"], {}, "this is a P-EAGLE head, which is not supported"),
        (["hidden_norm.weight", "layers.0.self_attn.q_norm.weight"], {}, "this is a DFlash head"),
        (["hidden_norm.weight"], {"speculators_model_type": "dspark"}, "this is a DSpark head"),
        (["speculator.emb.0.weight"], {}, "this is an MLP speculator"),
        (["model.layers.0.mlp.up_proj.weight"], {}, "a whole model without a head; .* as kind draft_model"),
        (["something.weight"], {}, r"no known head; expected EAGLE-1/2/3, Medusa and MTP.*something\.weight"),
        (["something.weight"], {"architectures": ["LlamaForCausalLMEagle3"], "hidden_size": 24}, "config.json has no"),
    ],
)
def test_what_is_no_head_of_ours_is_told(
    tensors: list[str], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Formats that are known and not served are named; others say what was found and what was expected."""
    with pytest.raises(ModelLoadError, match=message):
        load(Checkpoint({name: torch.ones(1, 1) for name in tensors}, config), tmp_path)


def test_modules_of_the_target_itself_are_found(tmp_path: Path) -> None:
    """MTP tensors inside a target's folder make a head; the rest of the model is not read."""
    draw, hidden = Draw(3), SIZES.hidden
    tensors = {"model.layers.0.mlp.up_proj.weight": draw.matrix(40, hidden)}
    prefix = "model.mtp_layers.0."
    for name in ("token_layernorm", "hidden_layernorm", "final_layernorm", "input_layernorm"):
        tensors[f"{prefix}{name}.weight"] = draw.norm(hidden)
    eagle = eagle1(SIZES).tensors
    tensors |= {f"{prefix}{n[9:]}": t for n, t in eagle.items() if n.startswith("layers.0.")}
    tensors[f"{prefix}input_proj.weight"] = draw.matrix(hidden, 2 * hidden)
    config = json.loads(json.dumps(specforge_eagle3(SIZES).config))
    loaded = load(Checkpoint(tensors, config | {"num_nextn_predict_layers": 1}), tmp_path)
    assert (loaded.head.spec.kind, len(loaded.readings)) == ("mtp", 1)
