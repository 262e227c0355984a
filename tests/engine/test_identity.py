"""Identity: nothing about speculation, batching, caching or recovery changes anything a client can see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specproxy.config.schema import DrafterConfig
from tests.heads.checkpoints import Sizes, eagle1
from tests.support.covering import pairwise
from tests.support.driver import Driver
from tests.support.engines import HOUSE_HEADS
from tests.support.identity import AXES, HEAD_AXES, Identity

CASES = pairwise(AXES)
HEAD_CASES = pairwise(HEAD_AXES)


def test_the_array_covers_every_pair() -> None:
    """Every two values of every two axes meet in some case."""
    names = list(AXES)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            seen = {(str(c[a]), str(c[b])) for c in CASES}
            assert seen == {(str(x), str(y)) for x in AXES[a] for y in AXES[b]}


@pytest.fixture(scope="module")
def identity(assemble_engine: Callable[..., Driver]) -> Identity:
    """The experiment on the house model as it is served by default."""
    driver = assemble_engine()
    assert driver.assembled.numerics.exactness.startswith("bitwise")
    return Identity(driver)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_pairwise_identity(identity: Identity, mini: list[dict[str, Any]], number: int) -> None:
    """Token ids, logprobs, finish reason and usage equal those of plain decoding, alone and in order."""
    records = [mini[(number * 7 + i * 11) % len(mini)] for i in range(4)]
    assert identity.mismatches(CASES[number], records) == []


@pytest.fixture(scope="module")
def head_identity(assemble_engine: Callable[..., Driver]) -> Identity:
    """The experiment with heads and trees, proven bitwise."""
    driver = assemble_engine(HOUSE_HEADS)
    assert driver.engine.runner.rules.trees
    return Identity(driver)


@pytest.mark.parametrize("number", range(len(HEAD_CASES)))
def test_pairwise_identity_of_heads_and_trees(head_identity: Identity, mini: list[dict[str, Any]], number: int) -> None:
    """Chains and trees of heads that read the target's hidden states change nothing either."""
    records = [mini[(number * 7 + i * 11) % len(mini)] for i in range(2)]
    assert head_identity.mismatches(HEAD_CASES[number], records) == []


@pytest.mark.parametrize("drafter", ["eagle", "eagle_tree"])
def test_identity_of_a_head_that_guesses_nothing(
    assemble_engine: Callable[..., Driver], mini: list[dict[str, Any]], tmp_path: Path, drafter: str
) -> None:
    """A random EAGLE-1 head, let in for once, proposes chains and trees of noise: nothing changes either."""
    sizes = Sizes(hidden=384, target_hidden=384, heads=6, head_dim=64, vocab=8192, layers=10)
    path = str(eagle1(sizes).write(tmp_path / "eagle"))
    config = DrafterConfig(type="eagle", path=path, options={"least": 0.0})
    identity = Identity(assemble_engine({"eagle": config}, fresh=True))
    case = {name: values[-1] for name, values in AXES.items()} | {"drafter": drafter, "k": 4}
    for temperature in (0.0, 0.8):
        assert identity.mismatches(case | {"temperature": temperature, "n": 1}, mini[:3]) == []
    assert identity.counts["eagle"].drafted > 0


@pytest.mark.slow
def test_identity_in_float32(assemble_engine: Callable[..., Driver], mini: list[dict[str, Any]]) -> None:
    """float32 reaches a bitwise rung too, and keeps identity at it."""
    identity = Identity(assemble_engine(dtype="float32"), max_tokens=24)
    assert identity.driver.assembled.numerics.exactness.startswith("bitwise")
    for number in range(0, len(CASES), 9):
        records = [mini[(number * 5 + i * 17) % len(mini)] for i in range(2)]
        assert identity.mismatches(CASES[number], records) == []
