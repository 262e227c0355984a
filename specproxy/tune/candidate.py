"""Candidate policy files: what is active, with other ``speculate`` mappings and the evidence for them as comments.

The files are edited, not written anew, so that comments, order and everything else of them stay.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from specproxy.errors import StartError
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.policy import PolicySet
from specproxy.policy.reading import policy_files
from specproxy.tune.session import Tuned

WIDTH = 2**16
"""Columns of a line: none is broken that was not."""


def edit(policies: PolicySet, tuned: Sequence[Tuned], comments: Mapping[str, Sequence[str]]) -> dict[Path, str]:
    """The files that change, with their new text. ``comments``: lines above each route's ``speculate``."""
    texts: dict[Path, str] = {}
    sources = {route.name: route.source for route in policies.routes}
    for item in tuned:
        if item.choice is None:
            continue
        source = sources[item.route]
        file = Path(source.document.file)
        yaml = _yaml()
        content = yaml.load(texts.get(file) or file.read_text(encoding="utf-8"))
        routes = content["routes"]
        routes.fa.set_block_style()
        route = routes[int(source.path[-1])]
        route.fa.set_block_style()
        _put(route, "speculate", item.choice.speculate())
        route.yaml_set_comment_before_after_key("speculate", before="\n".join(comments[item.route]), indent=4)
        output = io.StringIO()
        yaml.dump(content, output)
        texts[file] = output.getvalue()
    return texts


def _yaml() -> YAML:
    """Reads and writes as the files of a policy directory are written."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = WIDTH
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _put(mapping: CommentedMap, key: str, value: Any) -> None:
    """Set ``key``, keeping a mapping that stands there, as comments hang on it."""
    old = mapping.get(key)
    if isinstance(old, CommentedMap) and isinstance(value, dict):
        for gone in [name for name in old if name not in value]:
            del old[gone]
        for place, (name, item) in enumerate(value.items()):
            if name in old:
                _put(old, name, item)
            else:
                old.insert(place, name, _flow(item))
    else:
        mapping[key] = _flow(value)


def _flow(value: Any) -> Any:
    """A mapping on one line."""
    if not isinstance(value, dict):
        return value
    made = CommentedMap({key: _flow(item) for key, item in value.items()})
    made.fa.set_flow_style()
    return made


def whole_set(directory: Path, texts: Mapping[Path, str]) -> dict[str, str]:
    """Every file of the active set by name, the edited ones with their new text."""
    edited = {file.name: text for file, text in texts.items()}
    return {
        file.name: edited.get(file.name, file.read_text(encoding="utf-8", errors="strict"))
        for file in policy_files(directory)
    }


def check_set(files: Mapping[str, str], catalogue: Catalogue) -> None:
    """Read and check a set as ``policy check`` does. Raises StartError with everything that is wrong."""
    with TemporaryDirectory(prefix="specproxy-tune-") as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        findings = PolicySet.read(Path(folder), catalogue)[1]
    if findings.errors:
        told = "\n".join(str(problem) for problem in findings.errors)
        raise StartError(f"the candidate is no valid set, which is a fault of tune; nothing was written:\n{told}")
