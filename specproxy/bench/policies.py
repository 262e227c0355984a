"""Policy sets for measuring: a copy of the user's in which a request may choose for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from specproxy.errors import StartError


def derive(source: Path, target: Path, *, exactness: str | None = None) -> None:
    """Write the set of ``source`` into the folder ``target``, changed so that every route allows the override and
    none holds out a share of its own; ``exactness`` (bitwise or numeric) replaces what the routes say.

    Raises StartError where the folder holds no readable set; whether it is a *right* set is for the server to say.
    """
    files = sorted(source.glob("*.yaml"))
    if not files:
        raise StartError(f"{source}: holds no policy files (*.yaml)")
    forced: dict[str, Any] = {"override": True, "hold_out": 0}
    if exactness is not None:
        forced["exactness"] = exactness
    documents = {file.name: _read(file) for file in files}
    for document in documents.values():
        for route in document.get("routes") or ():
            route |= {key: value for key, value in forced.items() if key in route}
    holder = next((d for d in documents.values() if "defaults" in d), None)
    if holder is None:
        holder = documents.setdefault("00-bench.yaml", {"version": 1})
    holder["defaults"] = (holder.get("defaults") or {}) | forced
    yaml = YAML(typ="safe", pure=True)
    for name, document in documents.items():
        with (target / name).open("w", encoding="utf-8") as handle:
            yaml.dump(document, handle)


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
