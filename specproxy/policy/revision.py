"""Revisions: what a route is, as a hash. Two routes that mean the same have the same revision, however written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from specproxy.policy.catalogue import Catalogue
from specproxy.policy.inherit import Effective, as_names, k_range, speculation
from specproxy.policy.reading import RouteSource

SHORT = 12
"""Hex digits of a revision that headers and tables show."""


def route_revision(source: RouteSource, effective: Effective, drafters: Sequence[str], catalogue: Catalogue) -> str:
    """SHA-256, in hex, of the effective route and the fingerprints of the drafters it may use.

    Fingerprints are known once the engine has loaded them; before, they count as empty.
    """
    settings: dict[str, Any] = msgspec.to_builtins(effective.settings)
    spec, k = speculation(effective.settings), k_range(effective.settings)
    settings["backend"] = as_names(effective.settings.backend)
    settings["speculate"] = (
        "off"
        if k.off
        else {
            "drafters": as_names(spec.drafters),
            "k": [k.min, k.max, k.adaptive],
            "tree": [spec.tree.width, spec.tree.nodes],
        }
    )
    prints = {spec.name: spec.fingerprint for spec in catalogue.drafters if spec.name in drafters}
    return _digest({"name": source.name, "match": source.match, "settings": settings, "drafters": prints})


def set_hash(routes: Sequence[tuple[str, str]]) -> str:
    """SHA-256, in hex, of a set: names and revisions in order."""
    return _digest(list(routes))


def short(revision: str) -> str:
    """A revision as headers and tables show it."""
    return revision[:SHORT]


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()
