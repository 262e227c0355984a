"""The tokenizer as the server sees it, against the library's own encode and decode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.errors import ModelLoadError
from specproxy.text.tokenizer import Tokenizer


def test_house_facts(house: Tokenizer) -> None:
    """The bundled folder gives the vocabulary, the limit and both end tokens, the generation config's first."""
    assert (house.vocab_size, house.model_max_length, house.eos_token_ids) == (8192, 2048, (2, 0))
    assert house.special_ids == frozenset(range(6))


def test_absurd_limit_is_no_limit(metaspace: Tokenizer) -> None:
    """Transformers' 10^30 means that the tokenizer knows no limit; the end token comes from tokenizer_config.json."""
    assert metaspace.model_max_length is None
    assert metaspace.eos_token_ids == (2,)


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_house_round_trip(house: Tokenizer, text: str) -> None:
    """Bytes of the tokens put together are the bytes of the text, for any text."""
    ids = house.encode(text, special=False)
    assert b"".join(map(house.token_bytes, ids)) == text.encode()
    assert house.decode(ids, skip_special=False) == text


def test_template_marks_become_special_tokens(house: Tokenizer) -> None:
    """A special token written out in a text is that token."""
    assert house.encode("<|im_start|>user", special=False)[0] == 1
    assert house.token_bytes(1) == b"<|im_start|>"


def test_metaspace_bytes(metaspace: Tokenizer) -> None:
    """The metaspace is a space, a byte token its byte."""
    ids = metaspace.encode("ab é", special=False)
    assert b"".join(map(metaspace.token_bytes, ids)) == " ab é".encode()


def test_view_of_half_a_character(house: Tokenizer) -> None:
    """A token that is no text by itself is shown escaped, beside its exact bytes."""
    view = house.view(house.encode("\U0001f600", special=False)[0])
    assert not view.is_text
    assert view.text == "".join(f"\\x{byte:02x}" for byte in view.data)


def test_unknown_id_is_nothing(house: Tokenizer) -> None:
    """An id that the vocabulary lacks has no bytes."""
    assert house.token_bytes(10**6) == b""


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet="a =-\n", min_size=1000, max_size=4000))
def test_least_tokens_is_a_lower_bound(house: Tokenizer, text: str) -> None:
    """The quick estimate never exceeds what tokenising finds."""
    assert house.least_tokens(text) <= len(house.encode(text, special=False))


def test_least_tokens_knows_when_it_does_not_know(house: Tokenizer, metaspace: Tokenizer, wordpiece: Tokenizer) -> None:
    """A tokenizer that may drop text or swallow it in one unknown token gives no bound; the others do."""
    assert wordpiece.least_tokens("the " * 10**5) == 0
    assert house.least_tokens("x" * 10**6) > 2048
    assert metaspace.least_tokens("x" * 10**6) > 2048


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    """A folder without tokenizer.json is refused with the file's name."""
    with pytest.raises(ModelLoadError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "Nonsense"}}'])
def test_broken_tokenizer(tmp_path: Path, content: str) -> None:
    """A file that is no tokenizer is refused with its path."""
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_broken_configuration(tmp_path: Path, house_dir: Path) -> None:
    """A configuration that is not JSON is refused with its path."""
    (tmp_path / "tokenizer.json").write_bytes((house_dir / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json"):
        Tokenizer.load(tmp_path)


def test_eos_from_config(tmp_path: Path, house_dir: Path) -> None:
    """Without generation_config.json the model's config.json names the end token."""
    (tmp_path / "tokenizer.json").write_bytes((house_dir / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert Tokenizer.load(tmp_path).eos_token_ids == (7,)
