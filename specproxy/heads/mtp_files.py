"""Where the modules of multi-token prediction stand in a checkpoint, and how they are stored.

They are layers of the target's own checkpoint that transformers leaves out, in some of its shards or in a file beside
them. Nothing but the index and the files' headers is read to find them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from specproxy.errors import ModelLoadError

INDEX = "model.safetensors.index.json"
SCALE = "_scale_inv"
"""Behind a weight's name: what its blocks are multiplied by (FP8 checkpoints of DeepSeek, GLM, MiMo-V2)."""

BLOCK = 128
"""Rows and columns that share a scale."""

Layout = Literal["mimo", "mimo_v2", "qwen_next", "next_layer"]
"""``next_layer``: layers behind the target's last one (DeepSeek-V3, GLM-4.5)."""

PREFIXES: dict[Layout, str] = {
    "mimo": "model.mtp_layers.{}.",
    "mimo_v2": "model.mtp.layers.{}.",
    "qwen_next": "mtp.layers.{}.",
    "next_layer": "model.layers.{}.",
}
"""Prefix of module i; of ``next_layer`` of module i - number of the target's layers."""

_NUMBERS: dict[Layout, re.Pattern[str]] = {
    layout: re.compile(re.escape(prefix).replace(r"\{\}", r"(\d+)")) for layout, prefix in PREFIXES.items()
}


@dataclass(frozen=True)
class Modules:
    """``layout``: how they are named. ``prefixes``: of each module, in order."""

    layout: Layout
    prefixes: tuple[str, ...]


def wanted(num_layers: int) -> Callable[[str], bool]:
    """Whether a tensor belongs to an MTP module of a target with ``num_layers`` layers, by its name."""

    def keep(name: str) -> bool:
        if name.startswith(("mtp.", "model.mtp.", "model.mtp_layers.")):
            return True
        number = _NUMBERS["next_layer"].match(name)
        return number is not None and int(number[1]) >= num_layers

    return keep


def find_modules(names: Collection[str], num_layers: int) -> Modules | None:
    """The modules among tensor names, ``None`` where there are none. Numbers count from 0 (or the target's number of
    layers) without a gap; what stands behind a gap is not found."""
    for layout, pattern in _NUMBERS.items():
        first = num_layers if layout == "next_layer" else 0
        numbers = {int(number[1]) for name in names if (number := pattern.match(name)) is not None}
        prefixes: list[str] = []
        while first + len(prefixes) in numbers:
            prefixes.append(PREFIXES[layout].format(first + len(prefixes)))
        fused = layout != "next_layer" or any(f"{prefix}eh_proj.weight" in names for prefix in prefixes)
        if prefixes and fused:
            return Modules(layout, tuple(prefixes))
    return None


def files(folder: Path, num_layers: int) -> list[Path]:
    """Files of ``folder`` that hold MTP tensors of a target with ``num_layers`` layers; empty where none does.

    Raises ModelLoadError for an index that cannot be read, or that names a file which is not there.
    """
    keep = wanted(num_layers)
    index = folder / INDEX
    listed: set[Path] = set()
    found: set[Path] = set()
    if index.is_file():
        for name, file in _read_index(index).items():
            listed.add(folder / file)
            if keep(name):
                found.add(folder / file)
        missing = sorted(file.name for file in found if not file.is_file())
        if missing:
            raise ModelLoadError(f"{folder}: {INDEX} places MTP tensors in {missing[0]}, which is not there")
    found |= {file for file in folder.glob("*.safetensors") if file not in listed and any(map(keep, _names(file)))}
    return sorted(found)


def _read_index(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{index.parent}: {index.name} cannot be read as an index of weights: {error}") from None


def _names(file: Path) -> list[str]:
    """Tensor names of a safetensors file, from its header."""
    try:
        with safe_open(file, framework="pt") as stream:
            return list(stream.keys())
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{file.parent}: {file.name} cannot be read as weights: {error}") from None


def dequantised(path: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those stored in FP8 with a scale per block multiplied out to bfloat16, without the scales.

    A weight [N, K] has scales [ceil(N / 128), ceil(K / 128)] (DeepSeek-V3, arXiv 2412.19437, section 3.3). Raises
    ModelLoadError for FP8 that comes without its scales, or with others.
    """
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE)}
    for name, tensor in plain.items():
        if tensor.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
            continue
        scale = tensors.get(name + SCALE)
        if scale is None or tensor.dim() != 2 or list(scale.shape) != [-(-size // BLOCK) for size in tensor.shape]:
            found = "none" if scale is None else list(scale.shape)
            raise ModelLoadError(
                f"{path}: {name} is FP8 of shape {list(tensor.shape)} with scales {found}; expected a scale for each "
                f"block of {BLOCK} x {BLOCK}"
            )
        whole = scale.float().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        plain[name] = (tensor.float() * whole[: tensor.shape[0], : tensor.shape[1]]).to(torch.bfloat16)
    return plain
