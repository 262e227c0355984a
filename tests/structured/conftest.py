"""Grammars of the house model's vocabulary."""

from __future__ import annotations

import pytest

from specproxy.structured.grammars import Grammars
from specproxy.text.tokenizer import Tokenizer
from tests.support.prompts import HOUSE

VOCAB = 8192
EOS = (2, 0)


@pytest.fixture(scope="session")
def grammars() -> Grammars:
    """Of the house model."""
    return Grammars(HOUSE / "tokenizer.json", VOCAB, EOS)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The house model's."""
    return Tokenizer.load(HOUSE)
