"""What drafters will take of a device's memory, told from their files before they are loaded.

KV of the target is allocated before drafters exist, and theirs has as many pages: so their sizes must be known first.
Headers of weight files and configurations say them; where neither is on this machine, or what they hold will be grown,
as much is set aside as two of the target's layers and its output matrix take.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from specproxy.config.schema import DrafterConfig
from specproxy.heads.mtp_files import files as mtp_files
from specproxy.heads.mtp_files import wanted as mtp_wanted
from specproxy.kernels.paged import LayerShape
from specproxy.models.base import ModelSpec
from specproxy.models.grown.shapes import find_shape
from specproxy.models.loading import BUNDLED, DTYPES, find_model

Basis = Literal["files", "reserve", "measured"]

HEADS = ("eagle", "eagle3", "medusa", "mtp")


@dataclass(frozen=True)
class DrafterSize:
    """Bytes of weights and of KV per token that a drafter keeps; ``basis``: how they are known."""

    name: str
    weights: int
    per_token: int
    basis: Basis

    def measured(self, weights: int) -> DrafterSize:
        """The same drafter, loaded."""
        return replace(self, weights=weights, basis="measured")


EAGLE3_STATES = 3
"""States of the target that an EAGLE-3 head reads."""


@dataclass(frozen=True)
class TargetSize:
    """What sizes of drafters are derived from. ``weights``: bytes; ``grown``: the shape that the target has been grown
    into, if it was; ``page_size``: tokens of a page."""

    spec: ModelSpec
    folder: Path
    weights: int
    grown: str = ""
    page_size: int = 64

    @property
    def layer(self) -> int:
        """Bytes of KV per token of the widest layer."""
        return max(shape.width for shape in self.spec.layers) * self.spec.dtype.itemsize

    def ends(self, states: int) -> int:
        """Bytes per token of so many states that are kept for the end of each page."""
        return -(-states * self.spec.hidden_size * self.spec.dtype.itemsize // self.page_size)


def drafter_size(name: str, config: DrafterConfig, target: TargetSize) -> DrafterSize | None:
    """The size of the drafter declared as ``name``; ``None`` for one that holds neither weights nor KV, or of a type
    that is not ours. Raises ModelLoadError for a draft model that is not there."""
    if config.type == "draft_model":
        return _draft_model(name, config, target)
    if config.type not in HEADS:
        return None
    path = _head_path(config, target)
    known = None if target.grown or path is None else _head(name, config.type, path, target)
    return known or _reserve(name, config.type, target)


def _draft_model(name: str, config: DrafterConfig, target: TargetSize) -> DrafterSize:
    wanted = DTYPES.get(str(config.options.get("dtype", "auto")))
    grown = config.options.get("grow")
    folder = find_model(config.path, "draft")
    facts = _read(folder / "config.json")
    dtype = wanted or DTYPES.get(str(facts.get("dtype") or facts.get("torch_dtype")), torch.float32)
    if grown:
        shape = find_shape(str(grown))
        matrices = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        numbers = shape.layers * sum(math.prod(shape.matrix(matrix)) for matrix in matrices)
        numbers += shape.vocab * shape.hidden * (1 if shape.tied else 2)
        width = shape.layers * LayerShape(shape.kv_heads, shape.head_dim, shape.head_dim).width
        return DrafterSize(name, numbers * dtype.itemsize, width * dtype.itemsize, "files")
    # A quantised one stays as it is stored; the others are converted to one type.
    itemsize = None if facts.get("quantization_config") else dtype.itemsize
    weights = sum(weight_bytes(file, itemsize) for file in _weight_files(folder))
    return DrafterSize(name, weights, _kv_width(facts, None) * dtype.itemsize, "files")


def _head(name: str, kind: str, path: Path, target: TargetSize) -> DrafterSize | None:
    """``None`` where the files do not say it."""
    itemsize, layers = target.spec.dtype.itemsize, len(target.spec.layers)
    if kind == "mtp":
        if not path.is_dir():
            return None
        keep = mtp_wanted(layers)
        weights = sum(weight_bytes(file, itemsize, keep) for file in mtp_files(path, layers))
        modules = int(_read(path / "config.json").get("num_nextn_predict_layers") or 1)
        return DrafterSize(name, weights, modules * target.layer + target.ends(1), "files") if weights else None
    folder = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else _weight_files(folder)
    weights = sum(weight_bytes(file, itemsize) for file in files)
    if not weights:
        return None
    facts = _read(folder / "config.json")
    states = EAGLE3_STATES if kind == "eagle3" else 1
    per_token = 0 if kind == "medusa" else (_kv_width(facts, 1) * itemsize or target.layer) + target.ends(states)
    return DrafterSize(name, weights, per_token, "files")


def _reserve(name: str, kind: str, target: TargetSize) -> DrafterSize:
    """One of the target's layers, the products in front of it, and an output product over half of the vocabulary: the
    published EAGLE-3 heads take 0.8 to 0.9 of that."""
    spec, itemsize = target.spec, target.spec.dtype.itemsize
    products = 4 * spec.hidden_size**2 + spec.vocab_size * spec.hidden_size // 2
    weights = target.weights // len(spec.layers) + products * itemsize
    per_token = 0 if kind == "medusa" else target.layer + target.ends(EAGLE3_STATES)
    return DrafterSize(name, weights, per_token, "reserve")


def _head_path(config: DrafterConfig, target: TargetSize) -> Path | None:
    """Where a head's files are, if they are on this machine."""
    if config.path == BUNDLED:
        return find_model(BUNDLED, "target" if config.type == "mtp" else config.type)
    path = Path(config.path).expanduser()
    return path if path.exists() else None


def _weight_files(folder: Path) -> list[Path]:
    """The weight files of a model or head: safetensors, or what there is instead."""
    for pattern in ("model*.safetensors", "*.safetensors", "*.bin", "*.pt"):
        if found := sorted(folder.glob(pattern)):
            return found
    return []


def weight_bytes(file: Path, itemsize: int | None = None, keep: Callable[[str], bool] = lambda _: True) -> int:
    """Bytes of a weight file's tensors that ``keep`` takes by name, as stored or with ``itemsize`` bytes a number; of a
    file that is not in safetensors' format, whole. A file that cannot be read counts as nothing: loading it says why.
    """
    if file.suffix != ".safetensors":
        return file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = min(int.from_bytes(stream.read(8), "little"), file.stat().st_size)
            header: Mapping[str, Any] = json.loads(stream.read(length))
        tensors = [facts for name, facts in header.items() if name != "__metadata__" and keep(name)]
        if itemsize is not None:
            return sum(math.prod(facts["shape"]) * itemsize for facts in tensors)
        return sum(facts["data_offsets"][1] - facts["data_offsets"][0] for facts in tensors)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0


def _kv_width(facts: Mapping[str, Any], layers: int | None) -> int:
    """Numbers of KV per token, of ``layers`` layers where a configuration does not count them; 0 where it says too
    little."""
    heads = int(facts.get("num_attention_heads") or 0)
    if not heads:
        return 0
    width = int(facts.get("head_dim") or int(facts.get("hidden_size") or 0) // heads)
    count = int(facts.get("num_hidden_layers") or layers or 0)
    return count * LayerShape(int(facts.get("num_key_value_heads") or heads), width, width).width


def _read(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(facts, dict):
        return {}
    inner = facts.get("text_config") or facts.get("transformer_layer_config")
    return {**facts, **inner} if isinstance(inner, dict) else facts
