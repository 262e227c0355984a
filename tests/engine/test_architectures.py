"""Other architectures, random weights: the any-architecture path keeps identity, both paths compute the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from specproxy.config.schema import DrafterConfig
from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from specproxy.models.loading import load_model
from specproxy.vocabulary import Decision, SamplingParams
from tests.support.driver import Driver
from tests.support.identity import Identity

HOUSE = Path(__file__).parent.parent.parent / "specproxy" / "models" / "house" / "target"
COMMON = {
    "vocab_size": 8192,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "max_position_embeddings": 2048,
    "eos_token_id": 2,
    "pad_token_id": 5,
    "bos_token_id": None,
}


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small model of a type, with seeded weights and the house tokenizer."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(7)
            extra = {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 2}
            config = transformers.AutoConfig.for_model(kind, **COMMON, **(extra if kind == "gemma3_text" else {}))
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.12)
            model.save_pretrained(folder)
            for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copy(HOUSE / name, folder / name)
            made[kind] = folder
        return made[kind]

    return make


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "llama", "mistral", "qwen2", "olmo2"])
@pytest.mark.parametrize("path_kind", ["auto", "transformers"])
def test_paged_attention_computes_the_stock_model(
    random_model: Callable[[str], Path], kind: str, path_kind: str
) -> None:
    """A prompt through pages equals the stock model's own forward within float32 rounding, on both paths."""
    model, _ = load_model(str(random_model(kind)), dtype="float32", path_kind=path_kind)
    with torch.no_grad():
        ids = torch.randint(0, 8192, (200,), generator=torch.Generator().manual_seed(3))
        kv = KVBuffers.allocate(model.spec.layers, 12, 64, torch.float32, "cpu")
        table = [4, 9, 2, 7]
        slots = torch.tensor([table[p // 64] * 64 + p % 64 for p in range(200)])
        plan = plan_attention([Span(0, 200, 0, table)], slots, kv)
        logits, _ = model.forward(ids, torch.arange(200), plan, kv, None)
        model.stock.set_attn_implementation("sdpa")
        expected = model.stock(input_ids=ids[None], use_cache=False).logits[0]
    assert torch.allclose(logits, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_identity_on_other_architectures(
    assemble_engine: Callable[..., Driver],
    random_model: Callable[[str], Path],
    mini: list[dict[str, Any]],
    kind: str,
    dtype: str,
) -> None:
    """Every accepted length up to 8 occurs under the replay drafter, and no answer changes."""
    drafters = {"replay": DrafterConfig(type="replay", options={"seed": 5}), "ngram": DrafterConfig(type="ngram")}
    driver = assemble_engine(drafters, path=str(random_model(kind)), dtype=dtype, max_sequences=8)
    assert driver.assembled.numerics.exactness.startswith("bitwise")
    identity = Identity(driver, max_tokens=24)
    for k in (3, 8):
        for temperature, sampling in ((0.0, "plain"), (0.8, "penalties"), (0.8, "top_p")):
            case = {
                "temperature": temperature,
                "drafter": "replay",
                "k": k,
                "together": 4,
                "cache": "miss",
                "preempt": k == 8,
                "resume": False,
                "sampling": sampling,
                "n": 1,
            }
            assert identity.mismatches(case, mini[k : k + 8]) == []
    assert identity.accepted_lengths("replay") == set(range(9))


def test_trees_change_no_token(
    assemble_engine: Callable[..., Driver],
    random_model: Callable[[str], Path],
    mini: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a route allows numeric, trees are verified: the same tokens, along branches that are not the first too."""
    drafters = {"replay": DrafterConfig(type="replay", options={"seed": 3, "shape": "tree"})}
    driver = assemble_engine(drafters, path=str(random_model("qwen3")), dtype="float32", max_sequences=8)
    moved: list[int] = []
    copy = driver.engine.runner.kv.copy_slots
    monkeypatch.setattr(driver.engine.runner.kv, "copy_slots", lambda a, b: (moved.append(len(a)), copy(a, b)))
    trees = Decision("on", "r", drafters=("replay",), k_min=12, k_max=12, adaptive=False, exactness="numeric")
    for params in (SamplingParams(temperature=0.0, max_tokens=32), SamplingParams(temperature=0.8, max_tokens=32)):
        plain = driver.run([driver.submission(r["ids"], params=params) for r in mini[:6]])
        drafted = driver.run(
            [
                driver.submission(r["ids"], trees, params=params, prediction=answer.tokens)
                for r, answer in zip(mini[:6], plain, strict=True)
            ]
        )
        assert [a.tokens for a in drafted] == [a.tokens for a in plain]
        assert [a.finish for a in drafted] == [a.finish for a in plain]
        assert sum(a.stats.steps for a in drafted) < sum(a.stats.steps for a in plain)
    assert len(moved) > 10
