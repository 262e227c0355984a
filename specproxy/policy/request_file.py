"""A request in a file: a body as clients send it, or an envelope with what surrounds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from specproxy.errors import ConfigError
from specproxy.policy.facts import Facts, extract_facts

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class Envelope(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body with what surrounds it. ``path`` empty: the one that fits the body; ``load``: queue depth in requests."""

    body: dict[str, Any]
    path: str = ""
    headers: dict[str, str] = {}
    api_key: str = ""
    prompt_tokens: int | None = None
    load: int = 0

    def facts(self) -> Facts:
        """The facts that a server would extract."""
        path = self.path or (COMPLETIONS if "prompt" in self.body and "messages" not in self.body else CHAT)
        return extract_facts(
            path,
            self.headers,
            self.body,
            api_key=self.api_key,
            prompt_tokens=self.prompt_tokens,
            load=self.load,
        )


def read_request(path: Path) -> Envelope:
    """Read a JSON file: an Envelope where it has ``body``, else the body alone. Raises ConfigError."""
    try:
        content = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: is not JSON: {error}") from None
    return as_envelope(content, str(path))


def read_requests(path: Path) -> list[Envelope]:
    """Read a JSONL file: a request a line, each as ``read_request`` takes it. Raises ConfigError naming the line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    envelopes = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            content = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{where}: is not JSON: {error}") from None
        envelopes.append(as_envelope(content, where))
    if not envelopes:
        raise ConfigError(f"{path}: holds no requests; expected one JSON object a line")
    return envelopes


def as_envelope(content: object, where: str) -> Envelope:
    """As ``read_request``, for content at hand. Raises ConfigError naming ``where``."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: expected a request body, a mapping with messages or prompt")
    if "body" not in content:
        return Envelope(body=dict(content))
    try:
        return msgspec.convert(content, Envelope)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
