"""Read a policy directory: every ``*.yaml`` in name order, checked against the schema, routes concatenated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specproxy.config.validate import check, suggest
from specproxy.config.yaml_reader import Document, KeyPath, Problem, read_yaml
from specproxy.policy.inherit import Layer
from specproxy.policy.schema import PolicyFile


@dataclass
class Findings:
    """What was found in a set. Errors keep it from being used; warnings and notes do not."""

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    def sort(self) -> Findings:
        """The same in order of file and line, each once."""
        return Findings(sorted(set(self.errors)), sorted(set(self.warnings)), sorted(set(self.notes)))


@dataclass(frozen=True)
class RouteSource:
    """A route as written: its mapping stands at ``path`` of ``document``."""

    name: str
    document: Document
    path: KeyPath
    mapping: Mapping[str, Any]

    @property
    def match(self) -> Mapping[str, Any]:
        """The conditions; empty where the route takes every request."""
        match: Mapping[str, Any] = self.mapping.get("match") or {}
        return match

    @property
    def layer(self) -> Layer:
        """The route's own settings."""
        own = {key: value for key, value in self.mapping.items() if key not in ("name", "match")}
        return Layer("route", self.document, self.path, own)

    @property
    def line(self) -> int:
        """Where the route begins."""
        return self.document.line(self.path)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A problem at ``path`` below the route."""
        return self.document.problem((*self.path, *path), message)


@dataclass
class Source:
    """A directory as read. ``complete``: no file had to be left out."""

    directory: Path
    defaults: Layer | None = None
    routes: list[RouteSource] = field(default_factory=list)
    complete: bool = True


def policy_files(directory: Path) -> list[Path]:
    """The files that make up the set, in name order; hidden ones, as editors leave them, are no part of it."""
    return sorted(path for path in directory.glob("*.yaml") if not path.name.startswith("."))


def read_directory(directory: Path, findings: Findings) -> Source:
    """Read every file of ``directory``. A file with errors is left out, so that the others can still be checked."""
    source = Source(directory)
    if not directory.is_dir():
        findings.errors.append(Problem(str(directory), 0, "", "is no directory; expected one with policy files"))
        source.complete = False
        return source
    for stray in sorted(directory.glob("*.yml")):
        findings.warnings.append(Problem(str(stray), 0, "", "is not read; policy files end in .yaml"))
    files = policy_files(directory)
    if not files:
        findings.errors.append(Problem(str(directory), 0, "", "has no *.yaml file; expected at least one with a route"))
        source.complete = False
    for path in files:
        faults: list[Problem] = []
        document = read_yaml(path, faults)
        if document is not None and document.value is not None:
            check(document, PolicyFile, faults)
        findings.errors += faults
        if faults or document is None:
            source.complete = False
        elif isinstance(document.value, dict):
            _add(source, document, document.value, findings)
    return source


def _add(source: Source, document: Document, content: Mapping[str, Any], findings: Findings) -> None:
    if "defaults" in content:
        if source.defaults is None:
            source.defaults = Layer("defaults", document, ("defaults",), content["defaults"])
        else:
            first = source.defaults.document
            where = f"{first.file}:{first.line(('defaults',))}"
            message = f"exactly one file may hold defaults, and {where} does"
            findings.errors.append(document.problem(("defaults",), message))
    for index, mapping in enumerate(content.get("routes", [])):
        route = RouteSource(mapping["name"], document, ("routes", index), mapping)
        twin = next((other for other in source.routes if other.name == route.name), None)
        if twin is not None:
            message = (
                f'the name "{route.name}" is taken by the route in {twin.document.file}:{twin.line}; names are unique'
            )
            findings.errors.append(route.problem(("name",), message))
        source.routes.append(route)


def did_you_mean(word: str, known: tuple[str, ...], what: str) -> str:
    """The tail of a message about an unknown name."""
    return suggest(word, known) or f"; {what}: {', '.join(known) or 'none'}"
