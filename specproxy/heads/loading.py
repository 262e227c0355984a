"""Load a head as it was published: find its files, tell its format, build it, say in how many ways it can be read.

Strict: every tensor has a place or stands on a list of what is ignored; what does not fit the target is refused with
one message that says what, where, what was expected and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specproxy.errors import ModelLoadError
from specproxy.heads import eagle3, mtp
from specproxy.heads.base import Head, TargetFacts
from specproxy.heads.eagle import EagleHead
from specproxy.heads.formats import IGNORED, detect, flatten, read_origin, wanted
from specproxy.heads.medusa import MedusaHead
from specproxy.heads.mtp_files import dequantised
from specproxy.heads.readings import Origin, Overrides, Reading, eagle3_readings
from specproxy.heads.weights import SUFFIXES, Weights, read_names, read_tensors, weight_files

STEMS = ("model*", "pytorch_model*", "mtp*")
"""Weight files of a folder; others are optimizer states, training arguments or duplicates in another format."""

AS_FOUND = Overrides()
PUBLISHED = ("*.json", "*.safetensors", "*.bin", "*.pt")


@dataclass(frozen=True)
class LoadedHead:
    """A head under its nominal reading. ``readings``: every way to understand the file, the nominal one first; a head
    that is no EAGLE-3 has that one only. ``warnings``: what people should know."""

    head: Head
    readings: tuple[Reading, ...]
    warnings: tuple[str, ...]
    build: Callable[[Reading], Head]

    def under(self, reading: Reading) -> Head:
        """The head under one of ``readings``; weights are shared, nothing is read again."""
        return self.head if reading == self.readings[0] else self.build(reading)


@dataclass(frozen=True)
class _Source:
    """What was found at ``path``."""

    path: str
    files: list[Path]
    config: dict[str, Any]


def read_head(path: str, target: TargetFacts, overrides: Overrides = AS_FOUND) -> LoadedHead:
    """The head at ``path``: a folder, a weight file beside its config.json, or a Hugging Face id.

    Raises ModelLoadError with one message for the user.
    """
    source = _find(path)
    names = read_names(path, source.files)
    kind = detect(names, source.config, target.num_layers, path)
    if kind in ("eagle", "eagle3") and not source.config:
        raise ModelLoadError(f"{path}: no config.json beside the weights; expected the one published with them")
    if kind != "eagle3" and overrides != AS_FOUND:
        raise ModelLoadError(f"{path}: layers and norm_before_residual can be given for EAGLE-3 only; this is {kind}")
    keep = wanted(kind, names, target.num_layers)
    tensors = read_tensors(path, source.files, keep.__contains__)
    config = flatten(source.config)
    if kind == "mtp":
        plain = Weights(path, dequantised(path, tensors), target.dtype, target.device, target.code)
        return _single(mtp.build(plain, config, target), ())
    weights = Weights(path, tensors, target.dtype, target.device, target.code)
    origin = read_origin(config, target, path)
    if kind == "eagle3":
        return _read_eagle3(weights, config, target, overrides, origin)
    made: Head = (EagleHead if kind == "eagle" else MedusaHead)(weights, config, target, origin)
    weights.finish(IGNORED)
    return _single(made, origin.notes)


def _read_eagle3(
    weights: Weights, config: dict[str, Any], target: TargetFacts, overrides: Overrides, origin: Origin
) -> LoadedHead:
    readings, warning = eagle3_readings(config, target.num_layers, overrides, weights.path)
    if warning:
        origin = replace(origin, notes=(*origin.notes, warning))
    head = eagle3.build(weights, config, target, readings[0], origin)
    weights.finish(IGNORED)
    return LoadedHead(head, readings, origin.notes, head.under)


def _single(head: Head, notes: tuple[str, ...]) -> LoadedHead:
    """A head that can be read in one way only."""
    return LoadedHead(head, (Reading("nominal", head.spec.hidden),), notes, lambda _: head)


def _find(path: str) -> _Source:
    """The weight files and configuration at ``path``. Raises ModelLoadError."""
    place = Path(path).expanduser()
    if not place.exists():
        place = _download(path)
    if place.is_file():
        if place.suffix not in SUFFIXES:
            raise ModelLoadError(f"{path}: not a weight file; expected a folder or a file in {', '.join(SUFFIXES)}")
        return _Source(path, [place], _read_config(path, place.parent))
    files = weight_files(place, ("medusa_lm_head",)) or weight_files(place, STEMS) or weight_files(place)
    if not files:
        raise ModelLoadError(f"{path}: no weights in this folder; expected files in {', '.join(SUFFIXES)}")
    return _Source(path, files, _read_config(path, place))


def _download(path: str) -> Path:
    """The folder of a Hugging Face id, from the local cache or the hub."""
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelLoadError(f"{path}: no such file or folder; expected a head's folder or an id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=list(PUBLISHED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelLoadError(f"{path}: not a local folder, and the hub did not give it: {error}") from None


def _read_config(path: str, folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{path}: config.json cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path}: config.json holds a {type(config).__name__}; expected an object")
    return config
