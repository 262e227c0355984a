"""API keys: who is allowed in, by the hash of what they present.

A key file has one ``id: sha256-of-the-key`` per line; ``#`` begins a comment. The environment variable has plain keys,
comma-separated; their ids are made from their hashes, so they stay the same when keys come and go.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from specproxy.config.schema import KeysConfig
from specproxy.errors import ConfigError

_LINE = re.compile(r"([A-Za-z0-9_.@-]+)\s*:\s*([0-9a-fA-F]{64})\Z")


class KeyRing:
    """The keys that are allowed. An empty ring means that none are set; whoever owns the listener decides then."""

    def __init__(self, hashes: Mapping[str, bytes]) -> None:
        """``hashes``: SHA-256 digest (32 bytes) of every key, by the key's id."""
        self._hashes = dict(hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    def lookup(self, presented: str) -> str | None:
        """The id of the key ``presented``, or ``None``.

        Compares with every key, in time that depends on their number alone, so timing tells nothing about them.
        """
        digest = hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()
        found: str | None = None
        for key_id, known in self._hashes.items():
            if hmac.compare_digest(digest, known):
                found = key_id
        return found


def load_keys(config: KeysConfig, env: Mapping[str, str]) -> KeyRing:
    """Keys of the configured file and of the environment variable. Raises ConfigError naming the line at fault."""
    hashes: dict[str, bytes] = {}
    if config.file:
        hashes.update(_read_file(Path(config.file)))
    for key in (part.strip() for part in env.get(config.env, "").split(",")):
        if key:
            digest = hashlib.sha256(key.encode("utf-8", "surrogatepass"))
            hashes[f"env-{digest.hexdigest()[:8]}"] = digest.digest()
    return KeyRing(hashes)


def _read_file(path: Path) -> dict[str, bytes]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys.file: {path} cannot be read: {error}") from None
    hashes: dict[str, bytes] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.match(text)
        if match is None:
            raise ConfigError(f"{path}:{number}: expected id: SHA-256 of the key in 64 hex digits")
        if match[1] in hashes:
            raise ConfigError(f'{path}:{number}: the id "{match[1]}" is used twice')
        hashes[match[1]] = bytes.fromhex(match[2])
    if not hashes:
        raise ConfigError(f"keys.file: {path} has no keys; expected lines of the form id: SHA-256 of the key")
    return hashes
