"""Inheritance: built-in defaults, the ``defaults`` of the set and a route, merged key by key, each key with its origin.

A mapping merges with a mapping. Anything else replaces what was there: a range over a fixed ``k`` starts from the
built-in range, not from the fixed number. ``speculate: off``, ``speculate: false`` and ``k: 0`` are one thing, written
``k: 0`` from here on; ``capture: on`` is true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from specproxy.config.yaml_reader import Document, Key, KeyPath, Problem, dotted
from specproxy.policy.schema import KRange, Settings, Speculate

BUILT_IN = "built in"


class Origin(Struct, frozen=True):
    """Where a setting comes from. ``layer``: route, defaults, built in, or request."""

    layer: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.layer} ({self.file}:{self.line})" if self.file else self.layer


@dataclass(frozen=True)
class Layer:
    """Settings as a file gives them: ``mapping`` stands at ``path`` of ``document``."""

    label: str
    document: Document
    path: KeyPath
    mapping: Mapping[str, Any]


@dataclass(frozen=True)
class Effective:
    """The settings that hold for a route. ``origins`` has every leaf by its path."""

    settings: Settings
    origins: Mapping[KeyPath, Origin]

    def origin(self, *path: Key) -> Origin:
        """Origin of ``path``: its own, or that of the first setting below or above it."""
        for end in range(len(path), 0, -1):
            for leaf, origin in self.origins.items():
                if leaf[:end] == path[:end]:
                    return origin
        return Origin(BUILT_IN)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A problem of the setting ``path``, at the line that it comes from."""
        origin = self.origin(*path)
        return Problem(origin.file or "built-in defaults", origin.line, dotted(path), message)


def inherit(layers: Sequence[Layer]) -> Effective:
    """Merge ``layers`` over the built-in defaults, the last winning."""
    merged: dict[str, Any] = msgspec.to_builtins(Settings())
    origins: dict[KeyPath, Origin] = {}
    _note(merged, (), origins, lambda _: Origin(BUILT_IN))
    for layer in layers:
        _merge(merged, _normal(layer.mapping), (), origins, layer)
    return Effective(msgspec.convert(merged, Settings), origins)


def _normal(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """One spelling for what has several."""
    normal = dict(mapping)
    speculate = normal.get("speculate")
    if speculate is False or speculate == "off":
        normal["speculate"] = {"k": 0}
    elif isinstance(speculate, dict) and (speculate.get("k") is False or speculate.get("k") == "off"):
        normal["speculate"] = {**speculate, "k": 0}
    if isinstance(normal.get("capture"), str):
        normal["capture"] = normal["capture"] == "on"
    return normal


def _merge(
    base: dict[str, Any], over: Mapping[str, Any], path: KeyPath, origins: dict[KeyPath, Origin], layer: Layer
) -> None:
    for key, value in over.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value, here, origins, layer)
            continue
        for leaf in [leaf for leaf in origins if leaf[: len(here)] == here]:
            del origins[leaf]
        if here == ("speculate", "k") and isinstance(value, dict):
            _note(msgspec.to_builtins(KRange()), here, origins, lambda _: Origin(BUILT_IN))
        base[key] = msgspec.to_builtins(value)
        _note(value, here, origins, lambda leaf: _origin(layer, leaf))


def _note(value: object, path: KeyPath, origins: dict[KeyPath, Origin], origin: Any) -> None:
    """Write down the origin of every leaf of ``value``."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            _note(item, (*path, key), origins, origin)
    else:
        origins[path] = origin(path)


def _origin(layer: Layer, leaf: KeyPath) -> Origin:
    return Origin(layer.label, layer.document.file, layer.document.line((*layer.path, *leaf)))


@dataclass(frozen=True)
class Range:
    """``k`` in one form. ``max`` None: only the drafter's own limit binds."""

    min: int
    max: int | None
    adaptive: bool

    @property
    def off(self) -> bool:
        """Whether nothing is ever drafted."""
        return self.max == 0

    def __str__(self) -> str:
        if self.off:
            return "off"
        if not self.adaptive:
            return str(self.min)
        return f"{self.min} to {'the drafter’s own limit' if self.max is None else self.max}"


def speculation(settings: Settings) -> Speculate:
    """The speculate mapping of merged settings."""
    spec = settings.speculate
    return spec if isinstance(spec, Speculate) else Speculate(k=0)


def k_range(settings: Settings) -> Range:
    """The range that ``k`` means."""
    return as_range(speculation(settings).k)


def as_range(k: object) -> Range:
    """``auto``, a number, a range, or off as a Range."""
    if isinstance(k, KRange):
        return Range(k.min, None if k.max == "auto" else int(k.max), True)
    if k == "auto":
        return Range(0, None, True)
    number = int(k) if isinstance(k, int) else 0
    return Range(number, number, False)


def as_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several as several."""
    return (value,) if isinstance(value, str) else tuple(value)
