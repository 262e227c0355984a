"""Loaders of heads: find the weights, settle how they are to be read, build the drafter around them."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from msgspec import Struct

from specproxy.drafters.growth import Draw
from specproxy.drafters.head import HeadDrafter
from specproxy.drafters.head_kv import HeadPages
from specproxy.drafters.held import held_bytes
from specproxy.drafters.medusa import MedusaDrafter
from specproxy.drafters.registry import Host, Options, read_options
from specproxy.drafters.trial import REFUSE, try_readings
from specproxy.errors import ConfigError, ModelLoadError
from specproxy.heads.base import Kind, ParallelHead, RecurrentHead
from specproxy.heads.loading import AS_FOUND, LoadedHead, read_head
from specproxy.heads.readings import Overrides
from specproxy.kernels.paged import KVBuffers
from specproxy.models.grown.heads import grow_head
from specproxy.models.grown.shapes import find_shape
from specproxy.models.loading import BUNDLED, find_model

DEFAULT_MAX_K = 8


class HeadOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``path``: a folder, a weight file, a Hugging Face id, or "house". ``max_k``: levels drafted at most; the route
    says whether they branch. ``least``: share of the target's own tokens that the head must guess at its first position
    to be served. ``draw``: see Draw."""

    path: str
    max_k: int = DEFAULT_MAX_K
    least: float = REFUSE
    draw: Draw = "coupled"

    def __post_init__(self) -> None:
        if self.max_k < 1:
            raise ValueError(f"expected max_k of 1 or more, got {self.max_k}")


class Eagle3Options(HeadOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``hidden``: the target's states the head was trained on, as numbers of layers that have run ("2,5,7"), where its
    configuration does not say so. ``norm_before_residual``: likewise."""

    hidden: str = ""
    norm_before_residual: bool | None = None


def load_eagle3(name: str, options: Options, host: Host) -> HeadDrafter:
    """The loader of type ``eagle3``. Raises ConfigError for options, ModelLoadError for weights."""
    chosen = read_options(Eagle3Options, name, "eagle3", options)
    try:
        hidden = tuple(int(part) for part in chosen.hidden.split(",")) if chosen.hidden else None
    except ValueError:
        raise ConfigError(
            f"drafters.{name}: hidden is {chosen.hidden!r}; expected numbers of layers such as 2,5,7"
        ) from None
    loaded = _read(name, "eagle3", chosen.path, host, Overrides(hidden, chosen.norm_before_residual))
    return _recurrent(name, loaded, chosen, host)


def load_eagle(name: str, options: Options, host: Host) -> HeadDrafter:
    """The loader of type ``eagle``: EAGLE-1 and EAGLE-2, which differ in the tree only."""
    chosen = read_options(HeadOptions, name, "eagle", options)
    return _recurrent(name, _read(name, "eagle", chosen.path, host), chosen, host)


def load_mtp(name: str, options: Options, host: Host) -> HeadDrafter:
    """The loader of type ``mtp``; the layers are usually among the target's own files, so ``path`` is the target's."""
    chosen = read_options(HeadOptions, name, "mtp", options)
    return _recurrent(name, _read(name, "mtp", chosen.path, host), chosen, host)


def load_medusa(name: str, options: Options, host: Host) -> MedusaDrafter:
    """The loader of type ``medusa``."""
    chosen = read_options(HeadOptions, name, "medusa", options)
    loaded = _read(name, "medusa", chosen.path, host)
    head = try_readings(name, loaded, host, chosen.least)
    weight_bytes = held_bytes(head, host.model)
    lanes = host.model.spec.path_kind == "device"
    return MedusaDrafter(name, cast(ParallelHead, head), chosen.max_k, chosen.draw, weight_bytes, lanes=lanes)


def _read(name: str, kind: Kind, path: str, host: Host, overrides: Overrides | None = None) -> LoadedHead:
    """The head at ``path``. Raises ModelLoadError where it is of another kind."""
    where = str(_bundled(kind)) if path == BUNDLED else path
    chosen = AS_FOUND if overrides is None else overrides
    loaded = _read_grown(where, host, chosen) if host.target.grown else read_head(where, host.target, chosen)
    found = loaded.head.spec.kind
    if found != kind:
        raise ModelLoadError(f"drafters.{name}: {path} holds a head of type {found}; expected {kind}")
    for warning in loaded.warnings:
        host.progress(f"drafters.{name}: {warning}")
    return loaded


def _read_grown(where: str, host: Host, overrides: Overrides) -> LoadedHead:
    """The head of the small target that ``host``'s was grown from, grown alike. Raises ModelLoadError."""
    target = host.target
    if not Path(where).is_dir():
        raise ModelLoadError(f"{where}: no such folder; a head is grown (model.grow) from a folder on this machine")
    small = json.loads((target.folder / "config.json").read_text("utf-8"))
    with TemporaryDirectory(prefix="specproxy-grown-") as folder:
        grown = grow_head(Path(where), small, find_shape(target.grown), target.device, target.dtype)
        grown.write(Path(folder))
        return read_head(folder, target, overrides)


def _bundled(kind: Kind) -> Path:
    """Where the house target's heads are."""
    return find_model(BUNDLED, "target") if kind == "mtp" else find_model(BUNDLED, kind)


def _recurrent(name: str, loaded: LoadedHead, chosen: HeadOptions, host: Host) -> HeadDrafter:
    head = try_readings(name, loaded, host, chosen.least)
    dtype, device = host.target.dtype, host.device
    kv = KVBuffers.allocate(head.spec.layers, host.num_pages, host.page_size, dtype, device)
    pages = HeadPages(kv, host.num_pages, host.on_allocate)
    recurrent, weight_bytes = cast(RecurrentHead, head), held_bytes(head, host.model)
    lanes = host.model.spec.path_kind == "device"
    return HeadDrafter(name, recurrent, pages, host.vocab_size, chosen.max_k, chosen.draw, weight_bytes, lanes=lanes)
