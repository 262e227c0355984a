"""Weights and configuration in the published formats: bf16 safetensors beside a config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from specproxy.errors import ModelLoadError
from specproxy.heads.weights import read_tensors


def published(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, floats in bf16, the rest as they are."""
    return {
        name: (tensor.detach().to(torch.bfloat16) if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in module.state_dict().items()
    }


def write_head(folder: Path, file: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Both files; what stood there is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    write_json(folder / "config.json", config)


def read_published(folder: Path, file: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors as ``write_head`` wrote them. Raises ModelLoadError."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder}: config.json cannot be read: {error}") from None
    return config, read_tensors(str(folder), [folder / file])


def write_json(path: Path, value: object) -> None:
    """Indented, with a line end."""
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
