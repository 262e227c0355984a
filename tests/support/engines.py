"""Engines inside the test's own process."""

from __future__ import annotations

from typing import Any

import torch

from specproxy.config.schema import DrafterConfig, EngineConfig, ModelConfig
from specproxy.engine.assemble import assemble
from tests.support.driver import Driver

HOUSE_DRAFTERS = {
    "prediction": DrafterConfig(type="prediction"),
    "ngram": DrafterConfig(type="ngram"),
    "suffix": DrafterConfig(type="suffix"),
    "draft_model": DrafterConfig(type="draft_model", path="house"),
    "replay": DrafterConfig(type="replay"),
}
"""What the house model is served with, and the replay drafter."""

HOUSE_HEADS = {
    "ngram": DrafterConfig(type="ngram"),
    "eagle3": DrafterConfig(type="eagle3", path="house"),
    "medusa": DrafterConfig(type="medusa", path="house"),
    "mtp": DrafterConfig(type="mtp", path="house"),
    "layer_skip": DrafterConfig(type="layer_skip"),
    "replay": DrafterConfig(type="replay", options={"shape": "mixed"}),
}
"""Drafters that read or share the target's states, and trees."""


class Engines:
    """Builds engines; those that are described alike are built once."""

    def __init__(self) -> None:
        self._built: dict[str, Driver] = {}

    def build(self, drafters: dict[str, DrafterConfig] | None = None, *, fresh: bool = False, **model: Any) -> Driver:
        """A Driver for ``drafters`` (``None``: the house's and replay) and the options of ``model``.

        ``fresh``: one that nobody else gets.
        """
        chosen = HOUSE_DRAFTERS if drafters is None else drafters
        key = repr((sorted(chosen.items()), sorted(model.items())))
        if not fresh and key in self._built:
            return self._built[key]
        config = EngineConfig(socket="", model=ModelConfig(**{"threads": 1} | model), drafters=chosen)
        driver = Driver(assemble(config, lambda what: None))
        if not fresh:
            self._built[key] = driver
        return driver

    def close(self) -> None:
        """Drop the engines; torch computes gradients again."""
        self._built.clear()
        torch.set_grad_enabled(True)
