"""The bundled target in float32, and a small corpus of its own answers; both are only read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from specproxy.text.template import ChatTemplate
from specproxy.text.tokenizer import Tokenizer
from specproxy.train.data import Mixture, answer_tasks
from specproxy.train.packing import Batch, Document, batches
from specproxy.train.records import Task
from specproxy.train.target import FrozenTarget

PROMPTS = (
    "Rename `size` to `total` in this code:\n\n```python\ndef add(size, more):\n    return size + more\n```",
    "Convert this event to JSON. Fields: date, location.\n\nReview on 23 November 2016 in Boston.",
    "Hello.",
)
LENGTH = 160


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, and no fight for cores with other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def target() -> FrozenTarget:
    """The bundled one."""
    return FrozenTarget.load("house", "cpu")


@pytest.fixture(scope="session")
def tasks(target: FrozenTarget) -> list[Task]:
    """Three prompts."""
    tokenizer, template = Tokenizer.load(target.folder), ChatTemplate.load(target.folder)
    assert template is not None
    texts = [template.render([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    return [Task(tuple(tokenizer.encode(text, special=False)), "test") for text in texts]


@pytest.fixture(scope="session")
def documents(target: FrozenTarget, tasks: list[Task]) -> list[Document]:
    """The target's greedy answers."""
    return answer_tasks(target, tasks, Mixture(greedy=1.0, max_new=40), batch_tokens=1000)


@pytest.fixture
def batch(documents: list[Document]) -> Batch:
    """All of them, packed."""
    return next(batches(documents, length=LENGTH, rows=3, seed=0))
