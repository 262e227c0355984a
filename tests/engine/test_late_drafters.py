"""Drafters that come and go in an engine that runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from specproxy.config.schema import DrafterConfig
from specproxy.engine.drafter_sizes import TargetSize
from specproxy.engine.late_room import LateRoom
from specproxy.engine.memory_plan import MIB, MemoryPlan, Reserves
from specproxy.errors import ConfigError, ModelLoadError
from specproxy.models.base import ModelSpec
from specproxy.vocabulary import Decision, SamplingParams
from tests.support.driver import Driver

HEAD = DrafterConfig(type="eagle3", path="house")
NGRAM = {"ngram": DrafterConfig(type="ngram")}


@pytest.fixture(scope="module")
def driver(assemble_engine: Callable[..., Driver]) -> Driver:
    """An engine of these tests' own."""
    return assemble_engine(NGRAM, fresh=True)


def test_an_unloaded_head_leaves_no_memory_behind(driver: Driver) -> None:
    """Nobody holds it any more: not the pages' listeners, not the costs, not what ran with it."""
    assembled = driver.assembled
    listeners = list(assembled.host.listeners)
    assembled.load_drafter("head", HEAD)
    head = weakref.ref(assembled.engine.drafting.drafters["head"])
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    answer = driver.run([driver.submission([5, 6, 7], Decision("on", "r", drafters=("head",), k_max=3), params=params)])
    assert answer[0].stats.drafts[0].drafted > 0
    assembled.unload_drafter("head")
    gc.collect()
    assert head() is None
    assert assembled.host.listeners == listeners


def test_a_replacement_that_fails_leaves_the_one_that_was_there(driver: Driver) -> None:
    """Refused by its trial, or at the very end, when it is measured while every page is in use."""
    assembled, pool = driver.assembled, driver.engine.scheduler.pool
    assembled.load_drafter("head", HEAD)
    before, listeners = assembled.drafter_infos(), len(assembled.host.listeners)
    with pytest.raises(ModelLoadError, match="expected 99% or more"):
        assembled.load_drafter("head", DrafterConfig(type="eagle3", path="house", options={"least": 0.99}))
    with pytest.raises(ConfigError, match="unknown type"):
        assembled.load_drafter("head", DrafterConfig(type="oracle"))
    assert assembled.drafter_infos() == before
    held: list[int] = []
    while (page := pool.allocate(None)) is not None:
        held.append(page)
    try:
        with pytest.raises(ModelLoadError, match="every page of KV is in use"):
            assembled.load_drafter("other", HEAD)
    finally:
        for page in held:
            pool.release(page)
    assert assembled.drafter_infos() == before
    assert len(assembled.host.listeners) == listeners
    assembled.unload_drafter("head")


def plan(device: str, share: float, reserves: Reserves, spec: ModelSpec) -> MemoryPlan:
    """A settled plan of a device of 1000 MB with 100 pages."""
    per_token = sum(layer.width for layer in spec.layers) * spec.dtype.itemsize
    return MemoryPlan(device, 1000 * MIB, share, 0, 100 * MIB, (), 0, reserves, 100, 64, per_token)


@pytest.mark.parametrize(
    ("device", "share", "reserves", "kept"),
    [("cpu", 1.0, Reserves(0, 0), 0), ("cuda", 0.9, Reserves(30 * MIB, 20 * MIB), 150)],
)
def test_what_does_not_fit_is_refused_with_the_numbers(
    driver: Driver, device: str, share: float, reserves: Reserves, kept: int
) -> None:
    """Weights, KV of as many pages and captured steps against what is free, less what steps and others keep."""
    spec = replace(driver.engine.runner.model.spec, device=device)
    graphs = 5 * MIB if device == "cuda" else 0
    room = LateRoom(plan(device, share, reserves, spec), TargetSize(spec, Path(), 100 * MIB), graphs)
    room.check("head", HEAD, 200 * MIB)
    room.check("words", DrafterConfig(type="ngram"), 0)
    with pytest.raises(ModelLoadError) as refused:
        room.check("head", HEAD, (kept + 5) * MIB)
    text = str(refused.value)
    assert "5 MB are left there: 1000 MB in all" in text
    assert f"captured steps {2 * graphs // MIB})" in text
    assert "model.kv_memory" in text
