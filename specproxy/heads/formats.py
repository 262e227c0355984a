"""Which published format a checkpoint has: told by its tensors' names first, by its configuration second.

Configurations are copied and forgotten (a published Medusa one says 2 heads where the file holds 5); the names are what
the weights were trained as.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from specproxy.errors import ModelLoadError
from specproxy.heads import mtp_files
from specproxy.heads.base import Kind, TargetFacts
from specproxy.heads.medusa import PREFIX as MEDUSA_PREFIX
from specproxy.heads.medusa import is_medusa
from specproxy.heads.mtp import is_mtp
from specproxy.heads.readings import Origin

KINDS = "EAGLE-1/2/3, Medusa and MTP"
IGNORED = ("verifier_lm_head*", "verifier_norm*", "*rotary_emb.inv_freq", "*rotary_emb.cos_cached", "*.sin_cached")
"""Tensors that no head needs: what speculators trains with, and buffers that are computed."""

UNSUPPORTED = {
    "peagle": "a P-EAGLE head",
    "dflash": "a DFlash head",
    "dflash2": "a DFlash head",
    "dspark": "a DSpark head",
}
"""Types of the speculators format that draft in parallel."""


def detect(names: Iterable[str], config: Mapping[str, Any], num_layers: int, path: str) -> Kind:
    """The kind of head in a checkpoint. Raises ModelLoadError where there is none, or one of a kind not served."""
    held = frozenset(names)
    _refuse(held, config, path)
    if any(name.startswith("midlayer.") for name in held) or "layers.0.hidden_norm.weight" in held:
        return "eagle3"
    if "fc.weight" in held and any(name.startswith("layers.0.") for name in held):
        return "eagle3" if "norm.weight" in held else "eagle"
    if any(is_medusa(name) for name in held):
        return "medusa"
    if is_mtp(held, num_layers):
        return "mtp"
    named = " ".join(config.get("architectures") or ()).lower()
    if "eagle3" in named or config.get("speculators_model_type") == "eagle3":
        return "eagle3"
    if any(name.startswith("model.layers.") for name in held):
        raise ModelLoadError(
            f"{path}: this is a whole model without a head; expected {KINDS}; load it as kind draft_model"
        )
    some = ", ".join(sorted(held)[:3])
    raise ModelLoadError(f"{path}: no known head; expected {KINDS}; the file holds {some or 'nothing'}, ...")


def _refuse(names: frozenset[str], config: Mapping[str, Any], path: str) -> None:
    """Raises ModelLoadError for kinds of heads that are known and not served."""
    what = UNSUPPORTED.get(str(config.get("speculators_model_type")))
    if "mask_hidden" in names:
        what = UNSUPPORTED["peagle"]
    elif "hidden_norm.weight" in names:
        what = what or UNSUPPORTED["dflash"]
    elif any(name.startswith("speculator.") for name in names):
        what = "an MLP speculator"
    if what is not None:
        raise ModelLoadError(f"{path}: this is {what}, which is not supported; expected {KINDS}")


def wanted(kind: Kind, names: Iterable[str], num_layers: int) -> frozenset[str]:
    """Tensors of a checkpoint that belong to the head: all, or those in a whole model that are named as such."""
    held = frozenset(names)
    if kind == "mtp":
        return frozenset(filter(mtp_files.wanted(num_layers), held))
    if kind == "medusa" and any(name.startswith(MEDUSA_PREFIX) for name in held):
        return frozenset(name for name in held if name.startswith(MEDUSA_PREFIX))
    return held


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with dimensions at the top: speculators keeps them under ``transformer_layer_config``."""
    inner = config.get("transformer_layer_config")
    if not isinstance(inner, Mapping):
        return dict(config)
    top = {key: value for key, value in config.items() if key != "transformer_layer_config" and value is not None}
    return {**inner, **top}


def read_origin(config: Mapping[str, Any], target: TargetFacts, path: str) -> Origin:
    """The target that a head was trained for, where its configuration names one; a note where it is another name than
    the target's. Raises ModelLoadError where it is another architecture."""
    speculators = config.get("speculators_config")
    verifier = speculators.get("verifier") if isinstance(speculators, Mapping) else None
    named: Mapping[str, Any] = verifier if isinstance(verifier, Mapping) else {}
    name = named.get("name_or_path") or config.get("base_model_name_or_path")
    trained = set(named.get("architectures") or ())
    serves = set(getattr(target.config, "architectures", None) or ())
    if trained and serves and not trained & serves:
        raise ModelLoadError(
            f"{path}: the head was trained for {name or 'a target'} of architecture {', '.join(sorted(trained))}; the "
            f"target is {', '.join(sorted(serves))}; choose a head made for this target"
        )
    if not name:
        return Origin()
    if _last(name) in _target_names(target):
        return Origin(name)
    return Origin(name, (f"trained for {name}, by name not the target in {target.folder}",))


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def _target_names(target: TargetFacts) -> set[str]:
    """What the target may be called: as configured, by its folder, by its folder in the hub's cache."""
    names = {_last(str(getattr(target.config, "name_or_path", ""))), target.folder.name.lower()}
    cached = Path(target.folder).parent.parent.name
    if cached.startswith("models--"):
        names.add(cached.rpartition("--")[2].lower())
    return names
