"""Prompt files: one JSON object per line, with an id, a category and the fields of a chat request."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from specproxy.errors import StartError

NOT_SENT = frozenset({"id", "category", "source", "reference"})
"""Fields of a record that describe it; all others are sent as they are."""


class Record(Struct, frozen=True):
    """One prompt. ``body``: the request's fields, ``messages`` at least. ``seed`` makes sampled answers comparable."""

    id: str
    category: str
    body: dict[str, Any]
    seed: int


def bundled() -> Path:
    """The prompt mix that ships with the package."""
    return Path(str(resources.files("specproxy.bench"))) / "data" / "mini.jsonl"


def load_records(path: Path) -> list[Record]:
    """All records of a prompt file, in its order. Raises StartError naming file and line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StartError(f"{path}: cannot be read: {error.strerror or error}") from None
    records = [_record(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise StartError(f"{path}: holds no prompts")
    return records


def select(records: Iterable[Record], categories: Sequence[str] = (), limit: int | None = None) -> list[Record]:
    """The records of ``categories`` (all where empty), the first ``limit`` of each. Raises StartError on a name that
    no record has."""
    records = list(records)
    known = list(dict.fromkeys(record.category for record in records))
    for name in categories:
        if name not in known:
            raise StartError(f"no prompt has the category {name!r}; the file has: {', '.join(known)}")
    taken = dict.fromkeys(known, 0)
    chosen = []
    for record in records:
        if categories and record.category not in categories:
            continue
        if limit is not None and taken[record.category] >= limit:
            continue
        taken[record.category] += 1
        chosen.append(record)
    return chosen


def at_temperature(record: Record, temperature: float) -> Record:
    """The same prompt, with a temperature of ours instead of its own."""
    return Record(record.id, record.category, record.body | {"temperature": temperature}, record.seed)


def _record(line: bytes, where: str) -> Record:
    try:
        raw = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise StartError(f"{where}: expected one JSON object per line: {error}") from None
    for key in ("id", "category"):
        if not isinstance(raw.get(key), str):
            raise StartError(f"{where}: {key}: expected a string, found {raw.get(key)!r}")
    if not isinstance(raw.get("messages"), list):
        raise StartError(f"{where}: messages: expected a list, found {raw.get('messages')!r}")
    body = {key: value for key, value in raw.items() if key not in NOT_SENT}
    return Record(raw["id"], raw["category"], body, seed=zlib.crc32(raw["id"].encode()))
