"""MTP modules are found where they are, without reading what they are not in, and refused with words that help."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.mtp import is_mtp
from specproxy.heads.mtp_files import INDEX, dequantised, files, find_modules, wanted
from tests.heads.mtp_checkpoints import (
    DEEPSEEK,
    FAMILIES,
    GLM,
    LAYERS,
    MIMO,
    MIMO_V2,
    QWEN,
    H,
    load,
    load_folder,
    random_tensors,
    target_facts,
    varied,
    write_folder,
)

Tensors = dict[str, Tensor]


@pytest.mark.parametrize("name", FAMILIES)
def test_published_folder_loads_whole(name: str, tmp_path: Path) -> None:
    """Every family loads from a folder as it is published, with nothing left over."""
    checkpoint = FAMILIES[name]
    write_folder(tmp_path, checkpoint, random_tensors(checkpoint, modules=2))
    head = load_folder(tmp_path, target_facts(tmp_path))
    assert head.spec.kind == "mtp"
    assert len(head.spec.layers) == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_told_by_its_names(name: str) -> None:
    """Names tell whether there are modules, also among the target's own."""
    names = set(random_tensors(FAMILIES[name]))
    own = {"model.embed_tokens.weight", "lm_head.weight", f"model.layers.{LAYERS - 1}.mlp.up_proj.weight"}
    assert is_mtp(names, LAYERS)
    assert is_mtp(names | own, LAYERS)
    assert all(map(wanted(LAYERS), names))
    assert not any(map(wanted(LAYERS), own))


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"],
        ["model.layers.2.mlp.up_proj.weight"],
        ["midlayer.self_attn.q_proj.weight", "fc.weight", "norm.weight"],
        ["layers.0.self_attn.q_proj.weight", "fc.weight"],
        ["0.0.linear.weight", "0.1.weight"],
    ],
)
def test_other_checkpoints_hold_no_modules(names: list[str]) -> None:
    """A plain target, a deeper one, EAGLE and Medusa heads are not taken for MTP."""
    assert not is_mtp(names, LAYERS)


def test_modules_are_counted_up_to_a_gap() -> None:
    """Modules count from the target's last layer on."""
    names = [f"model.layers.{i}.eh_proj.weight" for i in (2, 3, 5)]
    found = find_modules(names, LAYERS)
    assert found is not None
    assert found.prefixes == ("model.layers.2.", "model.layers.3.")


def test_only_shards_with_modules_are_named(tmp_path: Path) -> None:
    """The index says where they are; other shards are not opened."""
    write_folder(tmp_path, MIMO, random_tensors(MIMO))
    (tmp_path / "model-00001-of-00003.safetensors").write_text("still on its way")
    assert [file.name[:11] for file in files(tmp_path, LAYERS)] == ["model-00002", "model-00003"]


def test_modules_in_a_file_beside_the_shards_are_found(tmp_path: Path) -> None:
    """A file that the index does not list counts by its header; so does the only file of a small model."""
    tensors = random_tensors(MIMO)
    write_folder(tmp_path, MIMO, {})
    save_file(tensors, tmp_path / "mtp.safetensors")
    assert [file.name for file in files(tmp_path, LAYERS)] == ["mtp.safetensors"]
    (tmp_path / INDEX).unlink()
    assert [file.name for file in files(tmp_path, LAYERS)] == ["mtp.safetensors"]


def test_folder_without_modules_names_no_files(tmp_path: Path) -> None:
    """A plain target has none."""
    write_folder(tmp_path, MIMO, {})
    assert files(tmp_path, LAYERS) == []
    assert files(tmp_path / "nowhere", LAYERS) == []


def test_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A half-downloaded model says which file to fetch."""
    write_folder(tmp_path, MIMO, random_tensors(MIMO))
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"model-00003-of-00003.safetensors, which is not there"):
        files(tmp_path, LAYERS)


@pytest.mark.parametrize("text", ["{", "[]", '{"metadata": {}}', '{"weight_map": 3}'])
def test_index_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    """A damaged index is named."""
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ModelLoadError, match="cannot be read as an index"):
        files(tmp_path, LAYERS)


def test_truncated_shard_is_refused(tmp_path: Path) -> None:
    """A file cut short is named, whether its header is whole or not."""
    write_folder(tmp_path, MIMO, random_tensors(MIMO))
    shard = tmp_path / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"model-00002-of-00003.safetensors cannot be read as weights"):
        load_folder(tmp_path, target_facts(tmp_path))
    (tmp_path / INDEX).unlink()
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(ModelLoadError, match=r"model-00002-of-00003.safetensors cannot be read as weights"):
        files(tmp_path, LAYERS)


OPTIONAL = ("bias", "sinks", "q_norm.weight", "mlp.gate.weight")
SHARED = ("embed_tokens", "shared_head.head", "experts", "shared_expert")


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_tensor_is_named(name: str) -> None:
    """Whatever tensor is taken away of those that each file has, loading says which one is missing."""
    checkpoint = FAMILIES[name]
    whole = random_tensors(checkpoint)
    gone = [n for n in whole if not n.endswith(OPTIONAL) and not any(part in n for part in SHARED)]
    assert len(gone) > 8
    for name in gone:
        words = "no MTP module among" if name == f"model.layers.{LAYERS}.eh_proj.weight" else f"{name} is missing"
        with pytest.raises(ModelLoadError, match=words):
            load(checkpoint, {n: tensor for n, tensor in whole.items() if n != name})


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        (DEEPSEEK, "model.layers.2.self_attn.kv_a_layernorm.weight"),
        (DEEPSEEK, "model.layers.2.mlp.experts.7.up_proj.weight"),
        (DEEPSEEK, "model.layers.2.mlp.shared_experts.up_proj.weight"),
        (GLM, "model.layers.2.self_attn.k_norm.weight"),
        (GLM, "model.layers.2.self_attn.v_proj.bias"),
        (QWEN, "mtp.layers.0.self_attn.q_norm.weight"),
        (QWEN, "mtp.layers.0.mlp.shared_expert_gate.weight"),
        (MIMO, "model.mtp_layers.0.self_attn.k_proj.bias"),
    ],
)
def test_missing_part_of_something_optional_is_named(checkpoint: Any, name: str) -> None:
    """What may be absent as a whole may not be there in part."""
    tensors = random_tensors(checkpoint)
    del tensors[name]
    with pytest.raises(ModelLoadError, match=f"{name} is missing"):
        load(checkpoint, tensors)


@pytest.mark.parametrize("name", FAMILIES)
def test_unknown_tensor_is_refused(name: str) -> None:
    """A tensor without a place is named, and not dropped; frequencies that old files carry are."""
    checkpoint = FAMILIES[name]
    tensors = random_tensors(checkpoint)
    modules = find_modules(tensors, LAYERS)
    assert modules is not None
    at = modules.prefixes[0]
    assert load(checkpoint, tensors | {f"{at}self_attn.rotary_emb.inv_freq": torch.ones(3)})
    with pytest.raises(ModelLoadError, match="extra_norm has no place"):
        load(checkpoint, tensors | {f"{at}extra_norm": torch.ones(3)})


@pytest.mark.parametrize("checkpoint", [MIMO, MIMO_V2, DEEPSEEK, GLM, QWEN])
def test_other_vocabulary_is_refused(checkpoint: Any) -> None:
    """A head for another vocabulary says so."""
    with pytest.raises(ModelLoadError, match="vocab_size 99; the target has 64"):
        load(varied(checkpoint, vocab_size=99), random_tensors(checkpoint))


def test_table_of_another_vocabulary_is_refused() -> None:
    """A configuration that lies does not help."""
    tensors, name = random_tensors(DEEPSEEK), "model.layers.2.embed_tokens.weight"
    tensors[name] = torch.randn(99, H)
    with pytest.raises(ModelLoadError, match=r"embed_tokens.weight has shape \[99, 32\]; expected \[64, 32\]"):
        load(DEEPSEEK, tensors)


@pytest.mark.parametrize("checkpoint", [MIMO, MIMO_V2, DEEPSEEK, GLM, QWEN])
def test_other_width_is_refused(checkpoint: Any) -> None:
    """Modules of a target of another size do not fit, by configuration or by tensors."""
    with pytest.raises(ModelLoadError, match="hidden"):
        load(varied(checkpoint, hidden_size=48), random_tensors(checkpoint))
    with pytest.raises(ModelLoadError, match=r"has shape .* expected"):
        load(varied(checkpoint, hidden_size=48), random_tensors(checkpoint), target_facts(hidden_size=48))


def test_files_without_modules_are_refused() -> None:
    """The message lists the names that would do."""
    with pytest.raises(ModelLoadError, match=r"no MTP module among the tensors.*model\.layers\.2"):
        load(MIMO, {"model.norm.weight": torch.ones(H)})


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "mtp_num_hidden_layers"])
def test_fewer_modules_than_promised_are_refused(key: str) -> None:
    """Where the configuration counts modules, none may be missing."""
    assert load(varied(MIMO, **{key: 2}), random_tensors(MIMO, modules=2)).spec.steps == 2
    with pytest.raises(ModelLoadError, match=f"{key} 3, but tensors of 2 modules"):
        load(varied(MIMO, **{key: 3}), random_tensors(MIMO, modules=2))


def test_text_part_of_a_configuration_is_read() -> None:
    """Multimodal targets nest what is wanted here."""
    nested = varied(QWEN, num_experts=...)
    inner = nested.config
    assert load(varied(nested, text_config=inner, hidden_size=7), random_tensors(nested)).spec.kind == "mtp"


def eight_bit(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Matrices [N, K] in FP8 with a scale per block, as DeepSeek publishes them; and what they stand for."""
    stored, meant = {}, {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or "embed" in name or "head" in name or "gate.weight" in name:
            stored[name] = meant[name] = tensor
            continue
        blocks = [-(-size // 128) for size in tensor.shape]
        scale = torch.rand(blocks, generator=torch.Generator().manual_seed(1)) * 0.01 + 0.001
        spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: tensor.shape[0], : tensor.shape[1]]
        stored[name] = (tensor.float() / spread).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
        meant[name] = stored[name].float() * spread
    return stored, meant


def test_blocks_of_eight_bits_are_multiplied_out(tmp_path: Path) -> None:
    """FP8 checkpoints load as they are; a matrix of more than one block has each by its own scale."""
    stored, meant = eight_bit(random_tensors(DEEPSEEK) | {"wide": torch.randn(200, 300)})
    plain = dequantised("x", stored)
    assert set(plain) == set(meant)
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor.double(), meant[name].double(), rtol=2**-8, atol=0)
    write_folder(tmp_path, DEEPSEEK, {name: tensor for name, tensor in stored.items() if "wide" not in name})
    assert load_folder(tmp_path, target_facts(tmp_path)).spec.kind == "mtp"


def _without_scale(tensors: Tensors) -> None:
    del tensors["w_scale_inv"]


def _other_blocks(tensors: Tensors) -> None:
    tensors["w_scale_inv"] = torch.ones(2, 2)


@pytest.mark.parametrize("damage", [_without_scale, _other_blocks])
def test_eight_bits_without_their_scales_are_refused(damage: Callable[[Tensors], None]) -> None:
    """FP8 numbers mean nothing without the scales they were stored with."""
    tensors = {"w": torch.ones(200, 100).to(torch.float8_e4m3fn), "w_scale_inv": torch.ones(2, 1)}
    assert dequantised("x", tensors)["w"].dtype == torch.bfloat16
    damage(tensors)
    with pytest.raises(ModelLoadError, match="expected a scale for each block of 128 x 128"):
        dequantised("x", tensors)


def test_configuration_is_needed_for_what_tensors_do_not_say(tmp_path: Path) -> None:
    """A key that the family needs is asked for by name."""
    write_folder(tmp_path, varied(MIMO, num_attention_heads=...), random_tensors(MIMO))
    assert "num_attention_heads" not in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ModelLoadError, match="no num_attention_heads"):
        load_folder(tmp_path, target_facts(tmp_path))
