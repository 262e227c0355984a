"""Quantised checkpoints: those that run here compute what their numbers say, the others are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from specproxy.config.schema import DrafterConfig
from specproxy.drafters.held import held_bytes
from specproxy.errors import ModelLoadError
from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from specproxy.models.base import StepModel
from specproxy.models.loading import load_model
from specproxy.models.quantised import METHODS
from specproxy.vocabulary import Decision, SamplingParams
from tests.support.driver import Driver

HOUSE = Path(__file__).parent.parent.parent / "specproxy" / "models" / "house" / "target"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with random weights and the house tokenizer."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=128,
        num_hidden_layers=2,
        max_position_embeddings=2048,
        eos_token_id=2,
        pad_token_id=5,
        bos_token_id=None,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.12)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(HOUSE / name, folder / name)
    return folder


def rewrite(
    source: Path, folder: Path, settings: dict[str, Any], quantise: Callable[[str, Tensor], dict[str, Tensor]]
) -> Path:
    """A copy of a model whose projections are what ``quantise`` makes of each: tensors by the end of their names.
    ``settings``: what its configuration says of that."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        made = quantise(name, weight) if stem.endswith("_proj") else {"weight": weight}
        tensors |= {f"{stem}.{end}": tensor.contiguous() for end, tensor in made.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | ({"quantization_config": settings} if settings else {})))
    return folder


def int4_rows(_name: str, weight: Tensor) -> dict[str, Tensor]:
    """Numbers of four bits, two a byte, with a scale a row."""
    scale = weight.abs().amax(1, keepdim=True) / 7
    numbers = ((weight / scale).round().clamp(-8, 7) + 8).to(torch.uint8)
    still = {f"{side}_activation_scale": torch.tensor(0.0) for side in ("input", "output")}
    return {"weight": numbers[:, ::2] | numbers[:, 1::2] << 4, "weight_scale": scale, **still}


def multiplied_out(name: str, weight: Tensor) -> dict[str, Tensor]:
    """What the numbers of four bits stand for."""
    made = int4_rows(name, weight)
    numbers = torch.stack([made["weight"] & 15, made["weight"] >> 4], 2).flatten(1).float() - 8
    return {"weight": numbers * made["weight_scale"]}


def as_it_is(_name: str, weight: Tensor) -> dict[str, Tensor]:
    """No other tensors than before."""
    return {"weight": weight}


def logits_of(model: StepModel) -> Tensor:
    """Logits [T, V] of a prompt through pages."""
    with torch.no_grad():
        ids = torch.randint(0, 8192, (100,), generator=torch.Generator().manual_seed(3))
        kv = KVBuffers.allocate(model.spec.layers, 6, 64, model.spec.dtype, "cpu")
        slots = torch.tensor([(4, 3)[p // 64] * 64 + p % 64 for p in range(100)])
        plan = plan_attention([Span(0, 100, 0, [4, 3])], slots, kv)
        return model.forward(ids, torch.arange(100), plan, kv, None)[0]


GEMMA = {"quant_method": "gemma", "num_bits": 4}
"""Packed numbers that torch alone multiplies with: transformers' modules for them need no other package."""


def test_a_quantised_model_computes_what_its_numbers_say(plain: Path, tmp_path: Path) -> None:
    """transformers' own modules run it, and give the logits of the weights multiplied out."""
    packed = rewrite(plain, tmp_path / "packed", GEMMA, int4_rows)
    model, _ = load_model(str(packed), dtype="float32", device="cpu")
    whole, _ = load_model(str(rewrite(plain, tmp_path / "whole", {}, multiplied_out)), dtype="float32", device="cpu")
    assert (model.spec.path_kind, whole.spec.path_kind) == ("transformers", "fused")
    assert model.spec.dtype == torch.float32
    torch.testing.assert_close(logits_of(model), logits_of(whole), atol=2e-4, rtol=1e-4)
    original, _ = load_model(str(plain), dtype="float32", device="cpu")
    assert not torch.allclose(logits_of(model), logits_of(original), atol=1e-2)


def test_packed_weights_count_as_they_are_held(plain: Path, tmp_path: Path) -> None:
    """Four bits a number take an eighth of float32, beside their scales and what is not quantised."""
    packed, _ = load_model(str(rewrite(plain, tmp_path, GEMMA, int4_rows)), dtype="float32", device="cpu")
    whole, _ = load_model(str(plain), dtype="float32", device="cpu", path_kind="transformers")
    rows = {"q": 64, "k": 32, "v": 32, "o": 64, "gate": 128, "up": 128, "down": 64}
    numbers = 2 * (64 * (64 + 32 + 32 + 64 + 128 + 128) + 128 * 64)
    scales = 2 * 4 * (sum(rows.values()) + 2 * len(rows))
    assert held_bytes(whole) - held_bytes(packed) == numbers * 4 - numbers // 2 - scales


@pytest.mark.slow
def test_speculation_changes_no_answer_of_a_quantised_model(
    assemble_engine: Callable[..., Driver], plain: Path, tmp_path: Path, mini: list[dict[str, Any]]
) -> None:
    """The engine proves a rung for it and answers alike with drafts and without."""
    folder = rewrite(plain, tmp_path, GEMMA, int4_rows)
    drafters = {"replay": DrafterConfig(type="replay", options={"seed": 5})}
    driver = assemble_engine(drafters, fresh=True, path=str(folder), dtype="bfloat16", max_sequences=4)
    assert driver.assembled.numerics.exactness.startswith("bitwise")
    assert driver.assembled.numerics.path == "transformers"
    params = SamplingParams(temperature=0.8, max_tokens=16)
    drafted = Decision("on", "r", drafters=("replay",), k_min=4, k_max=4, adaptive=False)
    expected = driver.run([driver.submission(r["ids"], params=params) for r in mini[:4]])
    answers = driver.run(
        [
            driver.submission(r["ids"], drafted, params=params, prediction=answer.tokens)
            for r, answer in zip(mini[:4], expected, strict=True)
        ]
    )
    assert [a.tokens for a in answers] == [a.tokens for a in expected]
    assert sum(a.stats.steps for a in answers) < sum(a.stats.steps for a in expected)


NEEDS = {
    "aqlm": "accelerate",
    "auto-round": "auto-round",
    "awq": "gptqmodel",
    "bitnet": "accelerate",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "NVIDIA GPUs",
    "fbgemm_fp8": "NVIDIA GPUs",
    "fouroversix": "fouroversix",
    "fp8": "accelerate",
    "fp_quant": "NVIDIA GPUs",
    "gguf": "safetensors",
    "gptq": "optimum and gptqmodel",
    "higgs": "NVIDIA GPUs",
    "hqq": "NVIDIA GPUs",
    "metal": "accelerate",
    "mxfp8": "accelerate",
    "nvfp4": "does not load",
    "quanto": "optimum-quanto",
    "quark": "amd-quark",
    "sinq": "sinq",
    "spqr": "NVIDIA GPUs",
    "torchao": "torchao",
    "vptq": "NVIDIA GPUs",
}
"""For each method that needs more than torch, a part of what the refusal says is missing on a CPU."""


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"gemma", "mxfp4"}))
def test_what_cannot_run_is_refused_by_name(
    plain: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The method, what it lacks here, and what to do stand in the one message."""
    monkeypatch.setattr("specproxy.models.quantised._installed", lambda package: False)
    folder = rewrite(plain, tmp_path, {"quant_method": method}, as_it_is)
    with pytest.raises(ModelLoadError, match=f"quantised with {method}, which .*not quantised") as refused:
        load_model(str(folder), device="cpu")
    assert NEEDS[method] in str(refused.value)


def test_transformers_own_check_is_told(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the packages seem to be there, transformers says what is wrong with them."""
    monkeypatch.setattr("specproxy.models.quantised._installed", lambda package: package != "accelerate")
    folder = rewrite(plain, tmp_path, {"quant_method": "torchao"}, as_it_is)
    with pytest.raises(ModelLoadError, match="quantised with torchao, which transformers cannot load on cpu"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ({"quant_method": "secret"}, {}, "not known to transformers"),
        ({"load_in_8bit": True}, {}, "quantised with bitsandbytes"),
        ({"bits": 4}, {}, "an unnamed method"),
        (GEMMA, {"path_kind": "fused"}, "leave out model.path_kind fused"),
        (GEMMA, {"grow": "tiny-8b"}, "leave out model.grow"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(
    plain: Path, tmp_path: Path, settings: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    """An unknown method is never taken for plain weights, and plain weights' settings are not ignored."""
    folder = rewrite(plain, tmp_path, settings, int4_rows)
    with pytest.raises(ModelLoadError, match=said):
        load_model(str(folder), device="cpu", **options)


def test_a_mark_beside_the_configuration_counts(plain: Path, tmp_path: Path) -> None:
    """A checkpoint whose quantisation stands in hf_quant_config.json is not loaded as plain weights."""
    folder = rewrite(plain, tmp_path, {}, as_it_is)
    (folder / "hf_quant_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="quantised with modelopt"):
        load_model(str(folder), device="cpu")


def test_tensors_that_are_not_there_are_not_invented(plain: Path, tmp_path: Path) -> None:
    """A checkpoint without the scales that its method needs is refused, where random ones would have served."""

    def without_scales(name: str, weight: Tensor) -> dict[str, Tensor]:
        return {end: tensor for end, tensor in int4_rows(name, weight).items() if end != "weight_scale"}

    folder = rewrite(plain, tmp_path, GEMMA, without_scales)
    with pytest.raises(ModelLoadError, match=r"asks for 14 tensors that the checkpoint lacks, such as .*weight_scale"):
        load_model(str(folder), device="cpu")
