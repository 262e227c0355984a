"""API keys."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from specproxy.config.keys import load_keys
from specproxy.config.schema import KeysConfig
from specproxy.errors import ConfigError


def digest(key: str) -> str:
    """A key as the file has it."""
    return hashlib.sha256(key.encode()).hexdigest()


def test_a_key_is_found_by_what_is_presented(tmp_path: Path) -> None:
    """The id of the file's line; unknown keys, ids and hashes themselves are nobody."""
    file = tmp_path / "keys"
    file.write_text(f"# people\nalice: {digest('a-secret')}\n\nbob:{digest('b-secret').upper()}   # trailing\n")
    ring = load_keys(KeysConfig(file=str(file)), {})
    assert len(ring) == 2
    assert ring.lookup("a-secret") == "alice"
    assert ring.lookup("b-secret") == "bob"
    for stranger in ("", "alice", digest("a-secret"), "a-secret ", "\udcff"):
        assert ring.lookup(stranger) is None


def test_keys_of_the_environment_have_ids_that_stay() -> None:
    """The id is made from the key, so adding or reordering keys renames nobody."""
    one = load_keys(KeysConfig(), {"SPECPROXY_API_KEYS": "x, y,,"})
    other = load_keys(KeysConfig(), {"SPECPROXY_API_KEYS": "z,y,x"})
    assert len(one) == 2
    assert one.lookup("x") == other.lookup("x") == f"env-{digest('x')[:8]}"


def test_no_keys_is_an_empty_ring() -> None:
    """Nobody is let in by it; whether anybody needs a key is the listener's business."""
    ring = load_keys(KeysConfig(), {})
    assert len(ring) == 0
    assert ring.lookup("") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("alice: plain-text-key\n", ":1: expected id: SHA-256"),
        (f"a: {'0' * 64}\na: {'1' * 64}\n", ':2: the id "a" is used twice'),
        ("# nobody\n", "has no keys"),
    ],
)
def test_a_wrong_file_is_refused_by_line_without_its_content(tmp_path: Path, content: str, message: str) -> None:
    """A message may reach a log, so it never repeats what could be a key."""
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_keys(KeysConfig(file=str(file)), {})
    assert message in str(caught.value)
    assert "plain-text-key" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """Serving without the keys that were asked for would let everybody in."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_keys(KeysConfig(file=str(tmp_path / "gone")), {})
