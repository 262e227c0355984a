"""API keys: who is allowed in, by the hash of what they present.

A key file has one ``id: sha256-of-the-key`` per line; ``#`` begins a comment. Limits of the key may follow on its line:
``requests_per_s=5 tokens_per_min=60000 concurrent=4``. The environment variable has plain keys, comma-separated; their
ids are made from their hashes, so they stay the same when keys come and go. They have no limits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from specproxy.config.schema import KeysConfig
from specproxy.errors import ConfigError

_LINE = re.compile(r"([A-Za-z0-9_.@-]+)\s*:\s*([0-9a-fA-F]{64})((?:\s+[a-z_]+=[0-9.]+)*)\Z")
_FORM = "id: SHA-256 of the key in 64 hex digits"


class KeyLimits(Struct, frozen=True):
    """What one key may use at most; ``None``: no limit. ``tokens_per_min``: of prompts and answers together;
    ``concurrent``: requests that are being answered."""

    requests_per_s: float | None = None
    tokens_per_min: int | None = None
    concurrent: int | None = None


class KeyRing:
    """The keys that are allowed. An empty ring means that none are set; whoever owns the listener decides then."""

    def __init__(self, hashes: Mapping[str, bytes], limits: Mapping[str, KeyLimits] | None = None) -> None:
        """``hashes``: SHA-256 digest (32 bytes) of every key, by the key's id; ``limits`` of those that have some."""
        self._hashes = dict(hashes)
        self.limits = dict(limits or {})

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
    limits: dict[str, KeyLimits] = {}
    if config.file:
        hashes, limits = _read_file(Path(config.file))
    for key in (part.strip() for part in env.get(config.env, "").split(",")):
        if key:
            digest = hashlib.sha256(key.encode("utf-8", "surrogatepass"))
            hashes[f"env-{digest.hexdigest()[:8]}"] = digest.digest()
    return KeyRing(hashes, limits)


def _read_file(path: Path) -> tuple[dict[str, bytes], dict[str, KeyLimits]]:
    """Digests and limits by id."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys.file: {path} cannot be read: {error}") from None
    hashes: dict[str, bytes] = {}
    limits: dict[str, KeyLimits] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.match(text)
        if match is None:
            raise ConfigError(f"{path}:{number}: expected {_FORM}, and behind it limits such as concurrent=4")
        if match[1] in hashes:
            raise ConfigError(f'{path}:{number}: the id "{match[1]}" is used twice')
        hashes[match[1]] = bytes.fromhex(match[2])
        if match[3].strip():
            limits[match[1]] = _limits(match[3].split(), f"{path}:{number}")
    if not hashes:
        raise ConfigError(f"keys.file: {path} has no keys; expected lines of the form {_FORM}")
    return hashes, limits


def _limits(words: Sequence[str], where: str) -> KeyLimits:
    """``name=number`` words as limits. Raises ConfigError."""
    found: dict[str, float | int] = {}
    for name, _, text in (word.partition("=") for word in words):
        if name not in KeyLimits.__struct_fields__ or name in found:
            known = ", ".join(KeyLimits.__struct_fields__)
            raise ConfigError(f"{where}: {name}= is no limit or is there twice; expected each at most once of {known}")
        try:
            found[name] = float(text) if name == "requests_per_s" else int(text)
        except ValueError:
            found[name] = 0
        if found[name] <= 0:
            kind = "a number" if name == "requests_per_s" else "a whole number"
            raise ConfigError(f"{where}: {name}= must be {kind} above 0; leave it out for no limit")
    return msgspec.convert(found, KeyLimits)
