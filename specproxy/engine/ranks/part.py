"""Loads a process's part of the target."""

from __future__ import annotations

from pathlib import Path

from specproxy.config.schema import ModelConfig
from specproxy.models.base import StepModel
from specproxy.models.loading import load_model
from specproxy.models.sharding import Group


def load_part(config: ModelConfig, group: Group | None) -> tuple[StepModel, Path]:
    """The part of ``group``'s rank, or the whole target without one, and its folder. Raises ModelLoadError."""
    return load_model(
        config.path,
        dtype=config.dtype,
        device=config.device,
        max_len=None if config.max_model_len == "auto" else config.max_model_len,
        path_kind=config.path_kind,
        trust_remote_code=config.trust_remote_code,
        grow=config.grow,
        group=group,
    )
