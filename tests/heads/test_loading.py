from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specproxy.errors import ModelLoadError
from specproxy.heads import loading
from specproxy.heads.loading import LoadedHead, read_head
from specproxy.heads.readings import Overrides
from tests.heads.checkpoints import (
    Checkpoint,
    Sizes,
    eagle1,
    fake_target,
    medusa,
    original_eagle3,
    specforge_eagle3,
    speculators_eagle3,
)

SIZES = Sizes()
TARGET = fake_target(SIZES).facts


def load(checkpoint: Checkpoint, folder: Path, overrides: Overrides | None = None) -> LoadedHead:
    """The written checkpoint."""
    return read_head(str(checkpoint.write(folder)), TARGET, overrides or Overrides())


@pytest.mark.parametrize("make", [original_eagle3, specforge_eagle3, speculators_eagle3])
def test_every_tensor_of_every_layout_is_needed(make: Callable[[Sizes], Checkpoint], tmp_path: Path) -> None:
    """Whichever tensor is missing, loading fails and names it; only t2d and copies of the target's may."""
    whole = make(SIZES)
    for name in set(whole.tensors) - {"t2d", "embed_tokens.weight"}:
        with pytest.raises(ModelLoadError, match=f"{name}|no known head"):
            load(whole.without(name), tmp_path)


@pytest.mark.parametrize("make", [original_eagle3, specforge_eagle3, speculators_eagle3, eagle1, medusa])
def test_an_unknown_tensor_is_refused(make: Callable[[Sizes], Checkpoint], tmp_path: Path) -> None:
    """What has no place is named, not left out."""
    with pytest.raises(ModelLoadError, match=r"tensor surprise\.weight has no place in this kind of head"):
        load(make(SIZES).plus(surprise__weight=torch.ones(2)), tmp_path)


def test_what_needs_no_place_is_ignored(tmp_path: Path) -> None:
    """Training's own copies of the target and computed buffers do not stop a head."""
    extra = {"verifier_lm_head.weight": torch.ones(2), "midlayer.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    assert load(specforge_eagle3(SIZES).plus(**extra), tmp_path).head.spec.kind == "eagle3"


def test_a_file_is_read_beside_its_configuration(tmp_path: Path) -> None:
    """A path may be a weight file; config.json is the one in its folder."""
    folder = original_eagle3(SIZES).write(tmp_path)
    assert read_head(str(folder / "pytorch_model.bin"), TARGET).head.spec.kind == "eagle3"


def test_medusa_needs_no_configuration(tmp_path: Path) -> None:
    """Heads whose sizes are all in the file load without a config.json."""
    folder = medusa(SIZES).write(tmp_path)
    (folder / "config.json").unlink()
    assert read_head(str(folder), TARGET).head.spec.steps == 3


def test_other_files_of_a_folder_are_let_be(tmp_path: Path) -> None:
    """Training arguments and optimizer states are no weights."""
    folder = original_eagle3(SIZES).write(tmp_path)
    torch.save({"lr": 1.0}, folder / "training_args.bin")
    torch.save({"lr": 1.0}, folder / "optimizer.pt")
    assert read_head(str(folder), TARGET).head.spec.kind == "eagle3"


def test_weights_may_come_in_several_files(tmp_path: Path) -> None:
    """Shards are one checkpoint."""
    whole = specforge_eagle3(SIZES)
    names = sorted(whole.tensors)
    for index, part in enumerate((names[:5], names[5:]), 1):
        shard = {name: whole.tensors[name] for name in part}
        replace(whole, tensors=shard, file=f"model-0000{index}-of-00002.safetensors").write(tmp_path)
    assert read_head(str(tmp_path), TARGET).head.spec.kind == "eagle3"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/head", "/nowhere/head: no such file or folder; expected a head's folder"),
        ("./head", "no such file or folder"),
        ("head", "no such file or folder"),
    ],
)
def test_a_path_that_is_not_there_is_named(path: str, message: str) -> None:
    """The message begins with what the user wrote."""
    with pytest.raises(ModelLoadError, match=message):
        read_head(path, TARGET)


def test_an_id_that_nobody_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that is neither in the cache nor on the hub says so."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="org/no-such-head: not a local folder, and the hub did not give it"):
        read_head("org/no-such-head", TARGET)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """It says which files were looked for."""
    with pytest.raises(
        ModelLoadError, match=r"no weights in this folder; expected files in \.safetensors, \.pt, \.bin"
    ):
        read_head(str(tmp_path), TARGET)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelLoadError, match="not a weight file"):
        read_head(str(tmp_path / "notes.txt"), TARGET)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", r"config\.json cannot be read"), ("[1]", r"config\.json holds a list; expected an object")],
)
def test_a_broken_configuration_is_named(content: str, message: str, tmp_path: Path) -> None:
    """A config.json that is no object is refused."""
    folder = original_eagle3(SIZES).write(tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=message):
        read_head(str(folder), TARGET)


def test_a_missing_configuration_is_asked_for(tmp_path: Path) -> None:
    """EAGLE's sizes are not all in the weights."""
    folder = original_eagle3(SIZES).write(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"no config\.json beside the weights"):
        read_head(str(folder), TARGET)


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "intermediate_size"])
def test_a_missing_size_is_named(key: str, tmp_path: Path) -> None:
    """A configuration without a size that has no default is refused."""
    with pytest.raises(ModelLoadError, match=rf"config\.json has no {key}"):
        load(specforge_eagle3(SIZES).saying(**{key: None}), tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'; expected silu"),
        ({"num_key_value_heads": 3}, "expected each to divide the one before"),
        ({"head_dim": 6}, r"q_proj\.weight has shape \[32, 48\]; expected \[24, 48\]"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rotary embedding of type 'dynamic'"),
    ],
)
def test_sizes_that_contradict_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    """What the configuration says is checked against the weights, and against what can be computed."""
    with pytest.raises(ModelLoadError, match=message):
        load(specforge_eagle3(SIZES).saying(**config), tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    """A download that broke off says which file and what to do."""
    folder = specforge_eagle3(SIZES).write(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors cannot be read as weights .* download it again"):
        read_head(str(folder), TARGET)


@pytest.mark.parametrize("make", [original_eagle3, specforge_eagle3, eagle1])
def test_another_width_is_refused(make: Callable[[Sizes], Checkpoint], tmp_path: Path) -> None:
    """A head of a target with another hidden size says both sizes and what to do."""
    wide = replace(SIZES, hidden=32, target_hidden=32)
    with pytest.raises(ModelLoadError, match=r"hidden states 32 wide; the target's hidden_size is 24.*choose a head"):
        load(make(wide), tmp_path)


@pytest.mark.parametrize("make", [original_eagle3, specforge_eagle3, speculators_eagle3, eagle1])
def test_another_vocabulary_is_refused(make: Callable[[Sizes], Checkpoint], tmp_path: Path) -> None:
    """A head of a target with another vocabulary says both sizes and what to do."""
    with pytest.raises(ModelLoadError, match=r"vocab_size 64; the target has 96: .* another vocabulary; choose a head"):
        load(make(replace(SIZES, vocab=64)), tmp_path)


def test_a_map_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    """d2t and t2d must say the same."""
    found = specforge_eagle3(SIZES)
    with pytest.raises(ModelLoadError, match="d2t and t2d contradict each other"):
        load(found.plus(t2d=found.tensors["t2d"].roll(1)), tmp_path)


def test_a_flag_that_is_missing_is_told(tmp_path: Path) -> None:
    """speculators' layout without norm_before_residual is served under a warning, and both readings are offered."""
    loaded = load(speculators_eagle3(SIZES).saying(norm_before_residual=None), tmp_path)
    assert "no norm_before_residual" in loaded.warnings[0]
    assert loaded.warnings[0] in loaded.head.spec.reading
    assert [reading.norm_before_residual for reading in loaded.readings[:2]] == [False, True]


def test_other_readings_share_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong layer ids are one reading away: the head is built again without its file, with other states."""
    loaded = load(specforge_eagle3(SIZES, ids=(2, 6, 9)), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    monkeypatch.delattr(loading, "read_tensors")
    heads = [loaded.under(reading) for reading in loaded.readings]
    assert [head.spec.hidden for head in heads] == [(3, 7, 10), (4, 8, 11), (2, 6, 9), (3, 7, 10)]
    assert heads[0] is loaded.head
    assert len({head.spec.fingerprint for head in heads}) == 4
    assert [head.spec.reading.partition(":")[0] for head in heads] == [reading.name for reading in loaded.readings]


def test_the_user_may_know_better(tmp_path: Path) -> None:
    """Layers and flag given by the user are the nominal reading."""
    loaded = load(original_eagle3(SIZES), tmp_path, Overrides((3, 5, 8), norm_before_residual=True))
    assert loaded.head.spec.hidden == (3, 5, 8)
    assert "layers as given" in loaded.head.spec.reading
    assert len(loaded.readings) == 1


@pytest.mark.parametrize("make", [eagle1, medusa])
def test_what_cannot_be_chosen_is_refused(make: Callable[[Sizes], Checkpoint], tmp_path: Path) -> None:
    """Layers given for a head that reads the final state are an error, not ignored."""
    with pytest.raises(ModelLoadError, match="can be given for EAGLE-3 only"):
        load(make(SIZES), tmp_path, Overrides(hidden=(3,)))


def test_heads_without_choices_have_one_reading(tmp_path: Path) -> None:
    """EAGLE-1/2 and Medusa are read in one way."""
    loaded = load(eagle1(SIZES), tmp_path)
    assert [reading.name for reading in loaded.readings] == ["nominal"]
    assert loaded.under(loaded.readings[0]) is loaded.head
