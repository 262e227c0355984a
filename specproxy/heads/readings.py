"""What an EAGLE-3 checkpoint leaves open: which hidden states it was trained on, and what its residual is.

Formats disagree about layer ids, and a head that reads the wrong layer guesses almost nothing (1 % instead of 59 %
accepted, vLLM PR 50170). So a checkpoint has an ordered list of readings: the nominal one, then those that were seen to
be right when it is wrong. An acceptance test picks; the user may decide.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specproxy.errors import ModelLoadError
from specproxy.models.base import FINAL

LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
FLAG = "norm_before_residual"


@dataclass(frozen=True)
class Reading:
    """``name``: for people, "nominal" for the first. ``hidden``: see HeadSpec. ``norm_before_residual``: the residual
    is the normed hidden state. ``source``: where the states come from."""

    name: str
    hidden: tuple[int, ...]
    norm_before_residual: bool = False
    source: str = ""

    def __str__(self) -> str:
        states = ", ".join("final" if state == FINAL else str(state) for state in self.hidden)
        source = f" ({self.source})" if self.source else ""
        return f"{self.name}: hidden states {states}{source}, {FLAG} {str(self.norm_before_residual).lower()}"


@dataclass(frozen=True)
class Overrides:
    """What the user knows better than the file. ``hidden``: states as hs indices, 1 <= i < number of layers."""

    hidden: tuple[int, ...] | None = None
    norm_before_residual: bool | None = None


@dataclass(frozen=True)
class Origin:
    """Where a head comes from. ``verifier``: the target it was trained for, as named. ``notes``: for people."""

    verifier: str | None = None
    notes: tuple[str, ...] = ()


NOWHERE = Origin()


def is_speculators(config: Mapping[str, Any]) -> bool:
    """Whether a configuration was written by speculators."""
    return "speculators_config" in config or "speculators_model_type" in config


def nested(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """SpecForge's own part of a configuration."""
    found = config.get("eagle_config")
    return found if isinstance(found, Mapping) else {}


def flag(config: Mapping[str, Any], *keys: str) -> bool | None:
    """The first of ``keys`` that is given, at the top or in SpecForge's part; ``None`` where none is."""
    for key in keys:
        for part in (config, nested(config)):
            if part.get(key) is not None:
                return bool(part[key])
    return None


def uses_layers(config: Mapping[str, Any]) -> bool:
    """Whether the head reads states of several layers, and not just the last one."""
    return flag(config, "use_aux_hidden_state") is not False


def read_layers(config: Mapping[str, Any], num_layers: int, path: str) -> tuple[tuple[int, ...], str]:
    """hs indices as ``config`` has them, ascending, each once, and where they come from.

    At the top (speculators) id v means that v layers have run: hs[v]. ``eagle_config.eagle_aux_hidden_state_layer_ids``
    (SpecForge) names the layer whose output is meant: hs[v + 1]. ``eagle_config.layer_ids`` is read as hs[v] (vLLM).
    Without ids: hs[2], hs[L // 2], hs[L - 3], as EAGLE trains. Raises ModelLoadError.
    """
    if not uses_layers(config):
        return (FINAL,), "use_aux_hidden_state is false"
    inner = nested(config)
    for part, key, shift in ((config, LAYER_IDS, 0), (inner, LAYER_IDS, 1), (inner, "layer_ids", 0)):
        if part.get(key):
            where = key if part is config else f"eagle_config.{key}"
            hidden = tuple(sorted({int(v) + shift for v in part[key]}))
            return _checked(hidden, num_layers, f"{path}: config.json, {where} {list(part[key])}"), f"from {where}"
    count = config.get("num_aux_hidden_states") or 3
    if count != 3:
        raise ModelLoadError(
            f"{path}: config.json says num_aux_hidden_states {count} and names no layers; expected {LAYER_IDS}; give "
            f"the layers that the head was trained on"
        )
    hidden = (2, num_layers // 2, num_layers - 3)
    return _checked(hidden, num_layers, f"{path}: config.json names no layers"), "EAGLE's default layers"


def eagle3_readings(
    config: Mapping[str, Any], num_layers: int, overrides: Overrides, path: str
) -> tuple[tuple[Reading, ...], str]:
    """Every reading of a checkpoint, the nominal one first, and a warning where the file leaves open what it should
    not. What the user decided is the same in all of them. Raises ModelLoadError."""
    if overrides.hidden is None:
        hidden, source = read_layers(config, num_layers, path)
        shifts = () if hidden == (FINAL,) else (1, -1)
    else:
        hidden, source = _checked(overrides.hidden, num_layers, f"{path}: layers given"), "layers as given"
        shifts = ()
    given = flag(config, FLAG) if overrides.norm_before_residual is None else overrides.norm_before_residual
    normed, warning = bool(given), ""
    if given is None and is_speculators(config):
        warning = f"config.json has no {FLAG}, for which speculators and vLLM have different defaults"
    nominal = Reading("nominal", hidden, normed, source)
    layers = [Reading(_shift_name(by), tuple(h + by for h in hidden), normed, source) for by in shifts]
    layers = [reading for reading in layers if all(1 <= state < num_layers for state in reading.hidden)]
    flipped = [_flipped(reading) for reading in (nominal, *layers)]
    if overrides.norm_before_residual is not None:
        return (nominal, *layers), ""
    if warning:
        pairs = zip((nominal, *layers), flipped, strict=True)
        return tuple(itertools.chain.from_iterable(pairs)), warning
    return (nominal, *layers, flipped[0]), ""


def _shift_name(by: int) -> str:
    return "every layer one later" if by > 0 else "every layer one earlier"


def _flipped(reading: Reading) -> Reading:
    normed = not reading.norm_before_residual
    what = f"{FLAG} {str(normed).lower()}"
    name = what if reading.name == "nominal" else f"{reading.name}, {what}"
    return Reading(name, reading.hidden, normed, reading.source)


def _checked(hidden: tuple[int, ...], num_layers: int, what: str) -> tuple[int, ...]:
    """``hidden``, all of which the target has. Raises ModelLoadError."""
    if not hidden or not all(1 <= state < num_layers for state in hidden):
        raise ModelLoadError(
            f"{what}: that is the states behind {', '.join(map(str, hidden))} layers; expected 1 to {num_layers - 1} "
            f"for a target of {num_layers} layers; the head was trained for another target, or give its layers"
        )
    return hidden
