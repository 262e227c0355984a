"""YAML 1.2 with line numbers: plain values beside the line of every key, and problems instead of exceptions.

The reader takes what a settings file needs and refuses the rest by name: duplicate keys, tags of other languages,
several documents in one file, aliases that would expand without end. ``off``, ``yes`` and dates are text, as YAML 1.2
says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Key = str | int
KeyPath = tuple[Key, ...]

MAX_NODES = 100_000
"""A settings file is far smaller; aliases of aliases reach this quickly."""

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset({_TAG + name for name in ("str", "int", "float", "bool", "null")})
_TEXT_TAGS = frozenset({_TAG + "timestamp"})


class Problem(Struct, frozen=True, order=True):
    """One fault of a file. ``line`` counts from 1; ``key`` is the dotted path of what is wrong."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


@dataclass
class Document:
    """A file's content as plain dicts, lists and scalars; ``lines`` has the line of every key and list item."""

    file: str
    value: object = None
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """Line of ``path``, or of the nearest thing around it that has one."""
        for end in range(len(path), -1, -1):
            found = self.lines.get(path[:end])
            if found is not None:
                return found
        return 1

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A problem at ``path``."""
        return Problem(self.file, self.line(path), dotted(path), message)


def dotted(path: Sequence[Key]) -> str:
    """``("routes", 0, "match")`` as ``routes[0].match``."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def read_yaml(path: Path, problems: list[Problem], name: str | None = None) -> Document | None:
    """Read the file ``path``; ``name`` is what messages call it.

    Appends every problem found, and returns ``None`` where nothing usable is left.
    """
    file = name if name is not None else str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        problems.append(Problem(file, 0, "", f"cannot be read: {error.strerror or error}"))
        return None
    except UnicodeDecodeError as error:
        problems.append(Problem(file, 0, "", f"is not UTF-8 text (byte {error.start})"))
        return None
    return parse_yaml(text, file, problems)


def parse_yaml(text: str, file: str, problems: list[Problem]) -> Document | None:
    """Like ``read_yaml`` for text at hand."""
    loader = YAML(typ="safe", pure=True)
    try:
        node = loader.compose(text)
        document = Document(file)
        if node is not None:
            document.value = _Builder(document, loader, problems).build(node, (), ())
        return document
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        what = " ".join(part for part in (error.context, error.problem) if part)
        problems.append(Problem(file, line, "", f"is not valid YAML: {what}{_offending(text, line)}"))
    except YAMLError as error:
        problems.append(Problem(file, 0, "", f"is not valid YAML: {' '.join(str(error).split())}"))
    except (_TooLarge, RecursionError):
        problems.append(Problem(file, 0, "", f"is nested too deeply, or its aliases expand to over {MAX_NODES} values"))
    return None


def parse_scalar(text: str) -> object:
    """A single value written as in YAML (``8``, ``true``, ``null``, text); what YAML refuses is text."""
    problems: list[Problem] = []
    document = parse_yaml(text, "", problems)
    return text if document is None or problems else document.value


def _offending(text: str, line: int) -> str:
    lines = text.splitlines()
    shown = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    return f", near: {shown[:80]}" if shown else ""


class _TooLarge(Exception):
    """More values than any settings file has."""


@dataclass
class _Builder:
    """Turns composed nodes into plain values, noting lines."""

    document: Document
    loader: YAML
    problems: list[Problem]
    count: int = 0

    def build(self, node: Node, path: KeyPath, above: tuple[int, ...]) -> object:
        """The plain value of ``node``. ``above``: identities of the nodes around it, to find an alias of itself."""
        self.count += 1
        if self.count > MAX_NODES or id(node) in above:
            raise _TooLarge
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        inside = (*above, id(node))
        if isinstance(node, MappingNode):
            return {key: self.build(child, (*path, key), inside) for key, child in self._entries(node, path)}
        if isinstance(node, SequenceNode):
            return [self.build(child, (*path, index), inside) for index, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _entries(self, node: MappingNode, path: KeyPath) -> Iterator[tuple[str, Node]]:
        seen: dict[str, int] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self._report(line, path, "a key must be plain text")
                continue
            key = key_node.value
            if key in seen:
                self._report(line, (*path, key), f'duplicate key "{key}"; it stands in line {seen[key]} already')
                continue
            seen[key] = line
            self.document.lines[(*path, key)] = line
            yield key, child

    def _scalar(self, node: Node, path: KeyPath) -> object:
        if not isinstance(node, ScalarNode) or (node.tag not in _PLAIN_TAGS and node.tag not in _TEXT_TAGS):
            self._report(node.start_mark.line + 1, path, f"tag {node.tag} is not known here; write plain values")
            return None
        if node.tag in _TEXT_TAGS:
            return str(node.value)
        value: object = self.loader.constructor.construct_object(node, deep=True)
        return value

    def _report(self, line: int, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self.document.file, line, dotted(path), message))
