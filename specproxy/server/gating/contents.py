"""Routes as the gate's store keeps them, and policy sets made of those again."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from specproxy.gate.store import Revision
from specproxy.policy.catalogue import AUTO, Catalogue
from specproxy.policy.policy import CompiledRoute, PolicySet

WATCHING = ("gate", "audit", "shadow", "hold_out", "capture")
"""Settings that say how a route is watched: they change no answer and no speed, so no evidence could speak for them."""

FILE = "active.yaml"


def content_of(policies: PolicySet, name: str, revision: str, now: float) -> Revision:
    """The route ``name`` of a set, whole, under the gate's ``revision``."""
    position = [route.name for route in policies.routes].index(name)
    route = policies.routes[position]
    return Revision(
        route=name,
        revision=revision,
        position=position,
        match=msgspec.to_builtins(dict(route.source.match)),
        settings=msgspec.to_builtins(route.effective.settings),
        drafters=fingerprints(route, policies.catalogue),
        created=now,
    )


def fingerprints(route: CompiledRoute, catalogue: Catalogue) -> dict[str, str]:
    """Drafters that the route may use, each with its fingerprint."""
    return {spec.name: spec.fingerprint for spec in catalogue.drafters if spec.name in route.decision.drafters}


def in_context(revision: str, policies: PolicySet) -> str:
    """The gate's name for a route whose text stays while its traffic, or its place, changes with the set."""
    return hashlib.sha256(f"{revision} in {policies.hash}".encode()).hexdigest()


def compiled(contents: Sequence[Revision], catalogue: Catalogue) -> PolicySet:
    """The set of stored routes, in order. Drafters that are not loaded any more are left out. Takes milliseconds: not
    for the event loop. Raises PolicyError where what they refer to is gone, such as an upstream."""
    routes = [_written(content, catalogue) for content in contents]
    with tempfile.TemporaryDirectory(prefix="specproxy-policies-") as folder:
        Path(folder, FILE).write_bytes(msgspec.json.encode({"version": 1, "routes": routes}))
        return PolicySet.load(Path(folder), catalogue)


def _written(content: Revision, catalogue: Catalogue) -> dict[str, Any]:
    """The route as a policy file would say it."""
    route: dict[str, Any] = {"name": content.route, **content.settings}
    if content.match:
        route["match"] = content.match
    spec = dict(route["speculate"])
    if spec["drafters"] != AUTO:
        named = [spec["drafters"]] if isinstance(spec["drafters"], str) else spec["drafters"]
        loaded = [name for name in named if name in catalogue.drafter_names]
        spec |= {"drafters": loaded} if loaded else {"drafters": AUTO, "k": 0}
    return route | {"speculate": spec}


def skeleton(policies: PolicySet) -> list[tuple[str, Any]]:
    """What decides which route takes a request: names and conditions in order."""
    return [(route.name, dict(route.source.match)) for route in policies.routes]


def only_watched_otherwise(old: Revision, new: Revision) -> bool:
    """Whether two revisions with the same conditions differ in nothing but how they are watched."""
    settings = [{k: v for k, v in item.settings.items() if k not in WATCHING} for item in (old, new)]
    return settings[0] == settings[1] and old.drafters == new.drafters and old.match == new.match


def route_of(policies: PolicySet, name: str) -> CompiledRoute | None:
    """The route called ``name``."""
    return next((route for route in policies.routes if route.name == name), None)
