"""Models that two ranks share: real processes, summing over gloo on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from specproxy.config.schema import DrafterConfig, EngineConfig, ModelConfig

if TYPE_CHECKING:
    from tests.support.driver import Driver

HOUSE = Path(__file__).parents[2] / "specproxy" / "models" / "house" / "target"
SIZES = {
    "vocab_size": 8192,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "max_position_embeddings": 1024,
    "eos_token_id": 2,
    "pad_token_id": 5,
    "bos_token_id": None,
}

Shared = Callable[..., AbstractContextManager["Driver"]]


@pytest.fixture(scope="session")
def write_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Writes a small model of a type with seeded weights and the house tokenizer; its folder."""

    def write(kind: str, dtype: str = "bfloat16", **sizes: Any) -> str:
        import torch
        import transformers

        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(11)
        config = transformers.AutoConfig.for_model(kind, **SIZES | sizes)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.12)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(HOUSE / name, folder / name)
        return str(folder)

    return write


@pytest.fixture(scope="session")
def shared(cache_home: Path) -> Shared:
    """An engine whose target two processes share, rank 0 being the test's own."""

    @contextmanager
    def build(drafters: dict[str, DrafterConfig], **model: Any) -> Iterator[Driver]:
        import torch

        from specproxy.engine.assemble import assemble
        from tests.support.driver import Driver

        config = ModelConfig(tensor_parallel=2, threads=1, **model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(cache_home))
            assembled = assemble(EngineConfig(socket="", model=config, drafters=drafters), lambda what: None)
        try:
            yield Driver(assembled)
        finally:
            assembled.close()
            torch.set_grad_enabled(True)

    return build
