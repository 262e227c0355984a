"""Faults put in on purpose are found by audits: a flipped token, a kernel, a cache, a mask, the noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from specproxy.bundle import excess
from specproxy.engine import faults, scheduler
from specproxy.engine.tolerance import measure_at_once
from specproxy.errors import ConfigError
from specproxy.kernels import paged
from specproxy.kernels.walk import walk
from specproxy.models.fused import FusedModel
from specproxy.sampling.noise import Noise
from tests.support.auditing import Auditing

Records = list[dict[str, Any]]

OPENINGS: Records = [{"ids": [17 + i, 300 + 7 * i, 91 + i]} for i in range(8)]
"""Prompts that leave much open, so that small errors decide."""


@pytest.fixture
def engine(auditing: Callable[..., Auditing]) -> Auditing:
    """The house model by its eager loop, whose parts can be spoilt, with a tolerance from before any fault."""
    made = auditing(compile="off", exactness="numeric")
    made.driver.engine.scheduler.pool.forget_idle()
    if made.audits.tolerance is None:
        made.audit(*made.answers([{"ids": [17, 18, 19]}], temperature=0.0))
    return made


def verdicts(engine: Auditing, records: Records, drafter: str = "ngram", **params: Any) -> set[str]:
    """Verdicts on answers to ``records``."""
    bundles = engine.answers(records, drafter, **{"temperature": 0.0} | params)
    return {result.verdict for result in engine.audit(*bundles)}


def test_without_a_fault_nothing_is_found(engine: Auditing, mini: Records) -> None:
    """The control of the controls."""
    assert "hard" not in verdicts(engine, mini[:6])
    assert "hard" not in verdicts(engine, mini[:6], "draft_model", temperature=0.8)


def test_flipped_tokens_are_found(engine: Auditing, mini: Records) -> None:
    """Every flip of an accepted token is a hard mismatch of its answer, and plain answers have none."""
    fault = faults.inject(engine.driver.assembled, faults.Wanted("flip_token", 25))
    try:
        bundles = engine.answers(mini[:6], "draft_model", temperature=0.8)
        assert fault.turns.struck >= 2
        assert "hard" in {result.verdict for result in engine.audit(*bundles)}
        before = fault.turns.struck
        assert "hard" not in verdicts(engine, mini[:6], "off", temperature=0.8)
        assert fault.turns.struck == before
        assert "FAULTS ON" in engine.driver.assembled.numerics.detail
    finally:
        fault.undo()
    assert "FAULTS ON" not in engine.driver.assembled.numerics.detail


@pytest.mark.parametrize(
    ("kind", "every", "drafter"), [("kernel", 1, "off"), ("cache", 20, "off"), ("mask", 1, "draft_model")]
)
def test_a_step_that_goes_wrong_is_found(
    auditing: Callable[..., Auditing], mini: Records, kind: str, every: int, drafter: str
) -> None:
    """On the path that serves: a product's tile off its place, a page cleared while it is read, a draft that does not
    see itself; once the fault is out, the same answers are clean."""
    engine = auditing()
    known = engine.driver.assembled
    engine.audits.tolerance = engine.audits.tolerance or measure_at_once(engine.audits.measure())
    asked = {"temperature": 0.8, "max_tokens": 48, "ignore_eos": True}
    fault = faults.inject(known, faults.Wanted(kind, every))
    try:
        assert "hard" in verdicts(engine, mini[:6], drafter, **asked)
        assert fault.turns.struck > 0
        assert faults.KINDS[kind].format(every) in known.numerics.detail
    finally:
        fault.undo()
    assert "hard" not in verdicts(engine, mini[:6], drafter, **asked)


def test_a_wrong_mask_touches_drafts_alone(auditing: Callable[..., Auditing], mini: Records) -> None:
    """Plain decoding has no row that another one of its step could hide from."""
    engine = auditing()
    right = [bundle.output for bundle in engine.answers(mini[:3], "off")]
    fault = faults.inject(engine.driver.assembled, faults.Wanted("mask", 1))
    try:
        assert [bundle.output for bundle in engine.answers(mini[:3], "off")] == right
        assert fault.turns.struck == 0
    finally:
        fault.undo()


def test_noise_that_depends_on_the_step_is_found(
    engine: Auditing, mini: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise keyed by how often it was asked for, in the engine alone."""
    right, calls = Noise.row, iter(range(10**9))
    with monkeypatch.context() as patch:
        patch.setattr(Noise, "row", lambda self, position: right(self, position + next(calls) % 2))
        bundles = engine.answers(mini[:3], temperature=1.0)
    assert "hard" in {result.verdict for result in engine.audit(*bundles)}


def test_a_stale_page_is_found(engine: Auditing, mini: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages found under a hash that forgets what came before hold another prompt's keys."""
    right = scheduler.page_hash
    records = [{"ids": record["ids"][:50] * 3 + [17] * 42 + [9]} for record in mini[:4]]
    assert "hard" not in verdicts(engine, records, "off")
    engine.driver.engine.scheduler.pool.forget_idle()
    monkeypatch.setattr(scheduler, "page_hash", lambda parent, tokens, how, salt: right(b"", tokens[-1:], how, salt))
    one_by_one = [verdicts(engine, [record], "off") for record in records]
    assert {"hard"} in one_by_one
    engine.driver.engine.scheduler.pool.forget_idle()


def test_a_walk_that_accepts_too_much_is_found(
    engine: Auditing, mini: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verifier that takes the first drafted token whatever the target sampled."""
    from specproxy.engine import loop

    def careless(tokens: Any, parents: Any, nodes: int, sampled: Any) -> tuple[list[int], int]:
        return walk(tokens, parents, nodes, [*tokens[:1], *sampled[1:]] if nodes else sampled)

    monkeypatch.setattr(loop, "walk", careless)
    assert "hard" in verdicts(engine, mini[:6], "ngram")


def forget_keys(monkeypatch: pytest.MonkeyPatch, every: int, layer: int) -> None:
    """A cache that loses each key and value whose slot is a multiple of ``every``, in one layer."""
    right = paged.KVBuffers.write

    def forgetful(self: paged.KVBuffers, at: int, slots: torch.Tensor, rows: torch.Tensor) -> None:
        right(self, at, slots, rows * (slots % every != 0)[:, None] if at == layer else rows)

    monkeypatch.setattr(paged.KVBuffers, "write", forgetful)


def test_keys_that_are_lost_are_found(engine: Auditing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the first layer's cache gone."""
    forget_keys(monkeypatch, 3, 0)
    engine.driver.engine.scheduler.pool.forget_idle()
    assert "hard" in verdicts(engine, OPENINGS, "off", temperature=1.0)
    engine.driver.engine.scheduler.pool.forget_idle()


def test_a_fault_too_small_for_a_hard_mismatch_shows_in_the_rate(
    engine: Auditing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seventh of one layer's cache gone makes near-ties fall the other way so often that rounding cannot be the
    cause; the same answers without the fault have as many as are expected."""

    def near_ties() -> tuple[int, float]:
        engine.driver.engine.scheduler.pool.forget_idle()
        bundles = engine.answers(OPENINGS, temperature=1.0, max_tokens=100, ignore_eos=True)
        results = engine.audit(*bundles)
        return sum(r.explained for r in results), sum(r.expected for r in results)

    assert excess(*near_ties()) > 0.001
    forget_keys(monkeypatch, 7, 3)
    assert excess(*near_ties()) < 1e-6
    engine.driver.engine.scheduler.pool.forget_idle()


def test_a_window_that_should_not_be_is_found(engine: Auditing, mini: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that hides all but the last 24 positions in every layer of the engine's loop."""
    right = FusedModel._attention

    def narrow(self: Any, index: int, layer: Any, *rest: Any) -> torch.Tensor:
        return right(self, index, replace(layer, scoring=layer.scoring._replace(window=24)), *rest)

    monkeypatch.setattr(FusedModel, "_attention", narrow)
    engine.driver.engine.scheduler.pool.forget_idle()
    assert "hard" in verdicts(engine, mini[:4], "off")
    engine.driver.engine.scheduler.pool.forget_idle()


def test_a_wrong_scale_is_found(engine: Auditing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that scales scores by half too much."""
    right = FusedModel._attention

    def scaled(self: Any, index: int, layer: Any, *rest: Any) -> torch.Tensor:
        wrong = layer.scoring._replace(scale=layer.scoring.scale * 1.5)
        return right(self, index, replace(layer, scoring=wrong), *rest)

    monkeypatch.setattr(FusedModel, "_attention", scaled)
    engine.driver.engine.scheduler.pool.forget_idle()
    assert "hard" in verdicts(engine, OPENINGS, "off", temperature=1.0)
    engine.driver.engine.scheduler.pool.forget_idle()


@pytest.mark.parametrize("text", ["flip_token", "flip_token:0", "mask:x", "other:3"])
def test_a_fault_that_is_none_is_refused(engine: Auditing, text: str) -> None:
    """The variable takes a known kind and a number, and nothing else."""
    with pytest.raises(ConfigError, match="flip_token:N, kernel:N, cache:N, mask:N"):
        faults.inject_wanted(engine.driver.assembled, {faults.VARIABLE: text}, print)
    assert engine.driver.engine.answers.faults is None


@pytest.mark.parametrize("kind", list(faults.KINDS))
def test_no_fault_is_put_in_unasked(engine: Auditing, kind: str) -> None:
    """Without the variable nothing is touched; with it, the output says so."""
    known = engine.driver.assembled
    before = known.numerics, known.engine.runner, known.engine.answers.faults
    faults.inject_wanted(known, {"SPECPROXY_FAULTS": f"{kind}:3"}, print)
    assert (known.numerics, known.engine.runner, known.engine.answers.faults) == before
    said: list[str] = []
    try:
        faults.inject_wanted(known, {faults.VARIABLE: f"{kind}:500"}, said.append)
        assert "FAULTS ON" in said[0]
        assert "in 500 " in said[0]
    finally:
        known.numerics, known.engine.runner, known.engine.answers.faults = before


def test_flips_are_counted_over_accepted_tokens() -> None:
    """The last token of a step was sampled, not drafted, and is never flipped."""
    turns = faults.Turns(3)
    spoilt = faults.Faults(turns, 10)
    steps = [spoilt.flip([9]), spoilt.flip([1, 2, 5]), spoilt.flip([9, 9, 9]), spoilt.flip([])]
    assert steps == [[9], [1, 2, 5], [0, 9, 9], []]
    assert turns.struck == 1


def test_a_seed_spreads_a_fault_at_random() -> None:
    """As often on average as without, the same for the same seed, and at no fixed distance."""
    turns, again, other = faults.Turns(50, 7), faults.Turns(50, 7), faults.Turns(50, 8)
    struck = [turns.strikes() for _ in range(20_000)]
    assert struck == [again.strikes() for _ in range(20_000)]
    assert struck != [other.strikes() for _ in range(20_000)]
    assert 330 < turns.struck < 470
    places = [i for i, here in enumerate(struck) if here]
    assert len({b - a for a, b in itertools.pairwise(places)}) > 50
