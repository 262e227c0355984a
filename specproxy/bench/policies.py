"""Policy sets for measuring: a copy of the user's in which a request may choose for itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from specproxy.bench.arms import ARM_HEADER, Arm
from specproxy.errors import StartError

CLONES = "!bench.yaml"
"""File of the cloned routes: its name sorts before any other, so that they are asked first."""


def derive(source: Path, target: Path, arms: Sequence[Arm] = (), *, exactness: str | None = None) -> None:
    """Write the set of ``source`` into the folder ``target``, changed so that every arm can be served by it.

    Every route lets a request switch speculation off, and none holds out a share of its own, has its answers audited or
    computed again in shadow: all of that would run beside what is measured. For an arm that chooses its drafter, or
    whose answers are to be audited, each route is repeated so, behind a condition on the header that names the arm.
    ``exactness`` (bitwise or numeric) replaces what the routes say. Raises StartError where the folder holds no
    readable set; whether it is a *right* set is for the server to say.
    """
    files = sorted(source.glob("*.yaml"))
    if not files:
        raise StartError(f"{source}: holds no policy files (*.yaml)")
    forced: dict[str, Any] = {"override": True, "hold_out": 0, "audit": {"fraction": 0}, "shadow": {"fraction": 0}}
    if exactness is not None:
        forced["exactness"] = exactness
    documents = {file.name: _read(file) for file in files}
    routes = [route for document in documents.values() for route in document.get("routes") or ()]
    for route in routes:
        route |= {key: value for key, value in forced.items() if key in route}
    clones = [_clone(route, arm) for arm in arms if arm.has_routes for route in routes]
    documents[CLONES] = {"version": 1, "routes": clones} if clones else {"version": 1}
    holder = next((d for d in documents.values() if "defaults" in d), documents[CLONES])
    holder["defaults"] = (holder.get("defaults") or {}) | forced
    yaml = YAML(typ="safe", pure=True)
    yaml.width = 2**16
    yaml.representer.ignore_aliases = lambda data: True
    for name, document in documents.items():
        with (target / name).open("w", encoding="utf-8") as handle:
            yaml.dump(document, handle)


def _clone(route: dict[str, Any], arm: Arm) -> dict[str, Any]:
    """The same route for requests of ``arm``, speculating and audited as the arm says."""
    mine: dict[str, Any] = {"header": {ARM_HEADER: arm.name}}
    match = {"all": [mine, route["match"]]} if route.get("match") else mine
    found = route | {"name": f"{route.get('name')}-{re.sub(r'[^A-Za-z0-9]+', '-', arm.name)}", "match": match}
    if arm.chooses:
        found["speculate"] = {
            "drafters": arm.drafter,
            "k": "auto" if arm.k is None else arm.k,
            "tree": {"width": arm.width, "nodes": arm.nodes},
        }
    if arm.budget is not None:
        found["audit"] = {"fraction": 1.0, "budget": arm.budget}
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        document = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise StartError(f"{file}: cannot be read as YAML: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise StartError(f"{file}: expected a mapping at the top")
    return document
