"""Heads whose blocks are compiled guess as those of torch's operations do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from specproxy.heads.base import RecurrentHead, TargetFacts
from specproxy.heads.loading import read_head
from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from specproxy.models.library import native_library
from specproxy.models.loading import find_model, load_model

PAGE, KNOWN, WIDTH = 64, 150, 384
PAGES = (2, 5, 3)
WORDS = [0b00001, 0b00011, 0b00101, 0b01001, 0b10101]
"""A tree of five nodes: two and three hang on the root's level, the last one on the second."""


@pytest.fixture(scope="module", autouse=True)
def _cache(cache_home: Path) -> Iterator[None]:
    """Compile once for all tests; no gradients."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        yield


@pytest.fixture(scope="module", params=["eagle3", "mtp"])
def heads(request: pytest.FixtureRequest, _cache: None) -> list[RecurrentHead]:
    """The house target's head of a kind: compiled, of torch's operations, and in float32."""
    told: list[str] = []
    code = native_library(told.append)
    if code is None:
        pytest.skip(told[-1])
    folder = find_model("house", "target" if request.param == "mtp" else request.param)
    made = []
    for dtype in ("bfloat16", "bfloat16", "float32"):
        model, target_folder = load_model("house", dtype=dtype)
        spec = model.spec
        facts = TargetFacts(
            embed=model.embed,
            head=model.head,
            config=model.config,
            folder=target_folder,
            hidden_size=spec.hidden_size,
            num_layers=len(spec.layers),
            vocab_size=spec.vocab_size,
            dtype=spec.dtype,
            device="cpu",
        )
        used = facts if made else replace(facts, code=code)
        made.append(cast(RecurrentHead, read_head(str(folder), used).head))
    return made


def run(head: RecurrentHead, dtype: torch.dtype) -> list[torch.Tensor]:
    """Scores behind a prompt's entries, behind the next one, and behind two levels of a tree, the second on its own."""
    kv = KVBuffers.allocate(head.spec.layers, 8, PAGE, dtype, "cpu")
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(KNOWN + 6, WIDTH, generator=generator).to(dtype)
    ids = torch.randint(0, 8192, (KNOWN + 6,), generator=generator)
    steps = [
        Span(0, KNOWN, 0, PAGES),
        Span(0, 1, KNOWN, PAGES),
        Span(0, 3, KNOWN + 1, PAGES, WORDS[:3]),
        Span(0, 2, KNOWN + 1, PAGES, WORDS[3:], before=3),
    ]
    scores = []
    for span in steps:
        places = range(span.context + span.before, span.end)
        slots = torch.tensor([PAGES[p // PAGE] * PAGE + p % PAGE for p in places])
        plan = plan_attention([span], slots, kv, exact=False)
        here = slice(places.start, places.stop)
        step = head.step(ids[here], states[here], torch.tensor(places), plan, kv)
        scores += [head.logits(step.features).float(), step.recurrent.float()]
    return scores


def test_compiled_blocks_are_the_head(heads: list[RecurrentHead]) -> None:
    """Scores and states are as close to float32 as those of torch's operations, in chains and in trees."""
    compiled, plain, precise = heads
    ours, theirs, exact = run(compiled, torch.bfloat16), run(plain, torch.bfloat16), run(precise, torch.float32)
    for mine, other, right in zip(ours, theirs, exact, strict=True):
        assert not torch.equal(mine, other)
        assert (mine - right).abs().mean() < 1.2 * (other - right).abs().mean()
