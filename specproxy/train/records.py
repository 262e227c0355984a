"""Training files: JSON lines or plain text, xz or not, become tasks for the target.

A record is one of: a chat (``messages``, perhaps ``tools``), whose prompt is everything before the last assistant turn;
a text (``{"text": ...}``, or a whole plain text file); captured traffic (``prompt_tokens`` and ``answer_tokens``, token
ids as the target produced them).
"""

from __future__ import annotations

import hashlib
import itertools
import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from specproxy.errors import InvalidRequest, StartError
from specproxy.text.template import ChatTemplate
from specproxy.text.tokenizer import Tokenizer

PLAIN = (".txt", ".md")
"""Endings of files that are one text; all others hold a JSON object a line."""


@dataclass(frozen=True)
class Task:
    """What the target is given. ``answer``: what it said, where that is known already.

    ``text``: a continuation of plain text; its own tokens train as well. ``source``: for people and for tables.
    """

    ids: tuple[int, ...]
    source: str
    text: bool = False
    answer: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Limits:
    """In tokens. ``prompt``: longer conversations are left out. ``prefix``: of a text, at most; shorter ones keep half
    of what they have. ``records``: of a file, at most."""

    prompt: int = 768
    prefix: int = 128
    records: int | None = None


def read_tasks(
    files: Iterable[Path], tokenizer: Tokenizer, template: ChatTemplate | None, limits: Limits
) -> list[Task]:
    """Every usable record of ``files``, in order. Raises StartError naming file and line of a broken one, or when
    nothing is usable."""
    drafts: list[_Draft] = []
    for file in files:
        for where, record in itertools.islice(_records(file), limits.records):
            drafts.append(_draft(record, where, template, limits))
    tasks = [task for task in _tokenise(drafts, tokenizer, limits) if task is not None]
    if not tasks:
        raise StartError(f"the training files hold no prompt of {limits.prompt} tokens or fewer")
    return tasks


def files_digest(files: Iterable[Path]) -> str:
    """SHA-256 (16 hex digits) over the files' bytes, in order. Raises StartError for one that cannot be read."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(_read(file)).digest())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Draft:
    """A task before its text is tokens; ``ids`` where it came as tokens."""

    source: str
    prompt: str = ""
    text: bool = False
    ids: tuple[int, ...] = ()
    answer: tuple[int, ...] | None = None


def _draft(record: dict[str, Any], where: str, template: ChatTemplate | None, limits: Limits) -> _Draft:
    source = str(record.get("category") or record.get("source") or where.partition(":")[0])
    if "prompt_tokens" in record:  # captured: the target's own answer, as it read and sampled it
        return _Draft(source, ids=_ids(record, "prompt_tokens", where), answer=_ids(record, "answer_tokens", where))
    if "messages" in record:
        return _Draft(source, _prompt(record, where, template))
    text = record.get("text")
    if not isinstance(text, str):
        raise StartError(f"{where}: expected messages, text, or prompt_tokens with answer_tokens")
    # A slice, as a long text costs time to tokenise; a token rarely has more than eight characters, and half is kept.
    return _Draft(source, text[: 16 * limits.prefix], text=True)


def _prompt(record: dict[str, Any], where: str, template: ChatTemplate | None) -> str:
    """The rendered conversation before its last assistant turn; empty if there is none."""
    if template is None:
        raise StartError(f"{where}: a chat record, but the model has no chat template; use texts")
    messages = record["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise StartError(f"{where}: messages: expected a list of objects with a role")
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages))
    if not messages[:last]:
        return ""
    try:
        return template.render(messages[:last], tools=record.get("tools") or None)
    except InvalidRequest as error:
        raise StartError(f"{where}: {error}") from None


def _tokenise(drafts: Sequence[_Draft], tokenizer: Tokenizer, limits: Limits) -> list[Task | None]:
    """Tasks; ``None`` for what is too long or says nothing. All texts at once, which uses every core."""
    chats = tokenizer.inner.encode_batch([d.prompt for d in drafts if not d.text], add_special_tokens=False)
    texts = tokenizer.inner.encode_batch([d.prompt for d in drafts if d.text], add_special_tokens=True)
    encoded = {False: iter(chats), True: iter(texts)}
    tasks: list[Task | None] = []
    for draft in drafts:
        ids = draft.ids or tuple(next(encoded[draft.text]).ids)
        if draft.ids:
            next(encoded[False])
        if draft.text:
            ids = ids[: min(limits.prefix, len(ids) // 2)]
        fits = 0 < len(ids) <= limits.prompt and draft.answer != ()
        tasks.append(Task(ids, draft.source, draft.text, draft.answer) if fits else None)
    return tasks


def _ids(record: dict[str, Any], key: str, where: str) -> tuple[int, ...]:
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(token, int) for token in value):
        raise StartError(f"{where}: {key}: expected a list of token ids")
    return tuple(value)


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, record) of each record."""
    data = _read(file)
    name = file.name.removesuffix(".xz")
    if name.endswith(PLAIN):
        yield f"{name}:1", {"text": data.decode("utf-8", "replace")}
        return
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield f"{name}:{number}", msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StartError(f"{file}:{number}: not a JSON object: {error}") from None


def _read(file: Path) -> bytes:
    try:
        data = file.read_bytes()
        return lzma.decompress(data) if file.suffix == ".xz" else data
    except (OSError, lzma.LZMAError) as error:
        raise StartError(f"{file}: cannot be read: {error}") from None
