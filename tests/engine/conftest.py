"""Engines for tests, and the bundled prompts as token ids."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from specproxy.config.schema import DrafterConfig, EngineConfig, ModelConfig
from specproxy.engine.assemble import assemble
from specproxy.text.template import ChatTemplate
from specproxy.text.tokenizer import Tokenizer
from tests.support.driver import Driver

REPOSITORY = Path(__file__).parent.parent.parent
HOUSE = REPOSITORY / "specproxy" / "models" / "house" / "target"


@pytest.fixture(scope="session")
def assemble_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Driver]]:
    """Build a Driver from model options; equal options share one engine."""
    built: dict[str, Driver] = {}
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))

    def build(drafters: dict[str, DrafterConfig] | None = None, fresh: bool = False, **model: Any) -> Driver:
        chosen = drafters if drafters is not None else default_drafters()
        key = repr((sorted(chosen.items()), sorted(model.items())))
        if fresh or key not in built:
            config = EngineConfig(socket="", model=ModelConfig(**model), drafters=chosen)
            driver = Driver(assemble(config, lambda what: None))
            if fresh:
                return driver
            built[key] = driver
        return built[key]

    yield build
    patch.undo()
    torch.set_grad_enabled(True)


def default_drafters() -> dict[str, DrafterConfig]:
    """What the house model is served with, and the replay drafter."""
    return {
        "prediction": DrafterConfig(type="prediction"),
        "ngram": DrafterConfig(type="ngram"),
        "draft_model": DrafterConfig(type="draft_model", path="house"),
        "replay": DrafterConfig(type="replay"),
    }


@functools.cache
def _text() -> tuple[Tokenizer, ChatTemplate]:
    template = ChatTemplate.load(HOUSE)
    if template is None:
        raise RuntimeError("the house model has a chat template")
    return Tokenizer.load(HOUSE), template


def with_ids(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its prompt's token ids under ``ids`` and its reference's under ``reference_ids``."""
    tokenizer, template = _text()
    record["ids"] = tokenizer.encode(template.render(record["messages"]), special=True)
    record["reference_ids"] = tokenizer.encode(record.get("reference") or "", special=False)
    return record


@pytest.fixture(scope="session")
def mini() -> list[dict[str, Any]]:
    """The bundled prompt mix with token ids."""
    lines = (REPOSITORY / "specproxy" / "bench" / "data" / "mini.jsonl").read_text().splitlines()
    return [with_ids(json.loads(line)) for line in lines]


@pytest.fixture(scope="session")
def routes() -> list[dict[str, Any]]:
    """The standard route mix with token ids, tools left out; skipped with a reason where the data is not there."""
    file = REPOSITORY.parent / "shared" / "data" / "eval" / "routes.jsonl"
    if not file.is_file():
        pytest.skip("the route mix (routes.jsonl) is not beside this checkout")
    records = (json.loads(line) for line in file.read_text().splitlines())
    return [with_ids(record) for record in records if record["category"] != "tools"]
