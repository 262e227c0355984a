"""Coupled and greedy drafting: the same logits judged in both ways, and the engine with both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from specproxy.bench.arms import parse_arm
from specproxy.bench.coupling import _Moment, listen
from specproxy.bench.draws import choose, greedy_twin, twins
from specproxy.config.schema import DrafterConfig
from specproxy.errors import StartError
from specproxy.sampling.sampler import Row, Sampler, propose_rows, sample_rows
from specproxy.vocabulary import Decision, SamplingParams
from tests.support.prompts import Prompt

V = 24
PARAMETERS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=6),
    SamplingParams(temperature=1.3, top_p=0.8),
    SamplingParams(temperature=1.0, min_p=0.1, logit_bias={3: 2.0}),
]


def make_sampler(params: SamplingParams, seed: int = 5) -> Sampler:
    """A sampler over V ids."""
    return Sampler(params, seed, 0, [0], V, (), torch.device("cpu"))


def make_logits(rows: int, seed: int) -> torch.Tensor:
    """Random logits [rows, V] of moderate sharpness."""
    return 1.5 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("params", PARAMETERS)
def test_tokens_come_as_often_as_the_distribution_says(params: SamplingParams) -> None:
    """Over 20,000 positions every id is drawn with its probability (five standard errors), none that has none."""
    sampler, logits, n = make_sampler(params), make_logits(1, 1), 20_000
    chances = sampler.distribution(logits[0])
    assert chances.sum() == pytest.approx(1.0)
    drawn = sample_rows(logits.expand(n, V), [Row(sampler, (), position) for position in range(n)])
    shares = np.bincount(drawn, minlength=V) / n
    assert (np.abs(shares - chances) <= 5 * np.sqrt(chances * (1 - chances) / n) + 1e-12).all()
    other = make_sampler(SamplingParams(temperature=0.4)).distribution(logits[0])
    assert not (np.abs(shares - other) <= 5 * np.sqrt(other * (1 - other) / n) + 1e-12).all()


def test_at_temperature_zero_one_token_has_it_all() -> None:
    """The distribution of greedy decoding is a single id."""
    chances = make_sampler(SamplingParams(temperature=0.0)).distribution(make_logits(1, 2)[0])
    assert (chances.max(), chances.sum()) == (1.0, 1.0)


@pytest.mark.parametrize("params", PARAMETERS)
def test_a_greedy_draw_is_the_likeliest_token(params: SamplingParams) -> None:
    """Without the noise the best id is that of the processed logits; coupled, it is what the target would sample."""
    sampler, logits = make_sampler(params), make_logits(100, 3)
    rows = [Row(sampler, (), position) for position in range(100)]
    greedy = [tokens[0] for tokens in propose_rows(logits, rows, coupled=False).tokens]
    assert greedy == [int(sampler.distribution(row).argmax()) for row in logits]
    coupled = [tokens[0] for tokens in propose_rows(logits, rows).tokens]
    assert coupled == sample_rows(logits, rows)
    assert coupled != greedy


@pytest.mark.parametrize("params", PARAMETERS)
def test_a_position_is_judged_as_the_drafter_would_have_guessed(params: SamplingParams) -> None:
    """Offline guesses are those of the draw itself, coupled and greedy, and rejection accepts what p and q share."""
    sampler, target, drafter = make_sampler(params), make_logits(60, 4), make_logits(60, 5)
    rows = [Row(sampler, (), position) for position in range(60)]
    coupled, greedy = propose_rows(drafter, rows).tokens, propose_rows(drafter, rows, coupled=False).tokens
    assert sampler.noise is not None
    for i, token in enumerate(sample_rows(target, rows)):
        p, q = sampler.distribution(target[i]), sampler.distribution(drafter[i])
        (found,) = _Moment(sampler, q, sampler.noise.row(i).numpy(), p).judge(token)
        assert (found.coupled, found.greedy) == (coupled[i][0] == token, greedy[i][0] == token)
        assert found.rejection == pytest.approx(1 - np.abs(p - q).sum() / 2)


def test_equal_logits_are_always_guessed_coupled() -> None:
    """Where the drafter says what the target says, the coupled guess is right every time; the greedy one is not."""
    sampler, logits = make_sampler(SamplingParams(temperature=1.0)), make_logits(60, 6)
    assert sampler.noise is not None
    heard = []
    for i, token in enumerate(sample_rows(logits, [Row(sampler, (), position) for position in range(60)])):
        p = sampler.distribution(logits[i])
        heard += _Moment(sampler, p, sampler.noise.row(i).numpy(), p).judge(token)
    assert all(position.coupled for position in heard)
    assert not all(position.greedy for position in heard)
    assert all(position.rejection == pytest.approx(1.0) for position in heard)


HOUSE = {
    "draft_model": DrafterConfig(type="draft_model", path="house", options={"compile": "off"}),
    "mtp": DrafterConfig(type="mtp", path="house"),
    "mtp_greedy": DrafterConfig(type="mtp", path="house", options={"draw": "greedy"}),
    "layer_skip": DrafterConfig(type="layer_skip"),
}


@pytest.mark.timeout(300)
def test_listening_changes_nothing(assemble_engine: Callable[..., Any], mini: list[Prompt]) -> None:
    """Every drafter is heard at every token but the first and the last; the text stays, and so does the engine."""
    driver = assemble_engine(HOUSE)
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    prompts = [prompt["ids"][:200] for prompt in mini if prompt["category"] in ("code", "chat")][:2]
    plain = driver.run([driver.submission(ids, seed=7, params=params) for ids in prompts])
    engine = driver.assembled.engine
    before = (engine.runner, dict(engine.drafting.drafters))
    for name in HOUSE:
        decision = Decision("listen", "r", drafters=(name,), k_max=1, adaptive=False)
        asked = [driver.submission(ids, decision, seed=7, params=params) for ids in prompts]
        heard = listen(driver.assembled, name, asked)
        assert [len(text) for text in heard] == [10, 10]
        assert all(0 <= position.rejection <= 1 for text in heard for position in text)
        assert any(position.coupled for text in heard for position in text)
        assert (engine.runner, engine.drafting.drafters) == before
        again = driver.run([driver.submission(ids, decision, seed=7, params=params) for ids in prompts])
        assert [answer.tokens for answer in again] == [answer.tokens for answer in plain]


def test_every_drafter_says_what_it_holds(assemble_engine: Callable[..., Any]) -> None:
    """Weights and KV of its own; nothing where all is the target's. Weights count once, however they are packed."""
    infos = {info.name: info for info in assemble_engine(HOUSE).assembled.drafter_infos()}
    assert infos["mtp"].weight_bytes == infos["mtp_greedy"].weight_bytes > 2**20
    assert infos["draft_model"].weight_bytes > 5 * 2**20
    assert infos["draft_model"].kv_bytes > 0 < infos["mtp"].kv_bytes
    assert (infos["layer_skip"].weight_bytes, infos["layer_skip"].kv_bytes) == (0, 0)


def test_each_drafter_gets_a_greedy_twin() -> None:
    """Both draw from the same weights and keep their other options; arms are paired by name."""
    drafters = {
        "mtp": DrafterConfig(type="mtp", path="house", options={"least": 0.1}),
        "ngram": DrafterConfig(type="ngram"),
    }
    arms = choose(drafters, [])
    assert [arm.name for arm in arms] == ["mtp"]
    both = twins(drafters, arms)
    assert {name: drafter.options["draw"] for name, drafter in both.items()} == {
        "mtp": "coupled",
        "mtp-greedy": "greedy",
    }
    assert all(drafter.options["least"] == 0.1 for drafter in both.values())
    twin = greedy_twin(parse_arm("mtp;k=3"))
    assert (twin.name, twin.drafter, twin.k) == ("mtp-greedy;k=3", "mtp-greedy", 3)


def test_what_has_no_logits_cannot_be_compared() -> None:
    """An arm that does not draw is refused with those that do."""
    drafters = {"mtp": DrafterConfig(type="mtp", path="house"), "ngram": DrafterConfig(type="ngram")}
    with pytest.raises(StartError, match="ngram does not draw from logits; expected one of: mtp"):
        choose(drafters, ["ngram"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_compares_both_ways(run_bench: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    """Both temperatures are heard and measured; coupled, greedy and plain answers are the same."""
    arguments = ("--categories", "json", "--limit", "1", "--max-tokens", "12", "--json")
    code, report, shown = run_bench("--coupling", "--arms", "mtp;k=3", *arguments)
    assert code == 0, shown
    assert [(draw["drafter"], draw["temperature"]) for draw in report["draws"]] == [("mtp;k=3", 0.8), ("mtp;k=3", 1.0)]
    for draw in report["draws"]:
        assert draw["positions"] == 10
        assert draw["coupled"]["mean"] > 0
        for engine in (draw["engine_coupled"], draw["engine_greedy"]):
            assert (engine["identical"], engine["compared"], engine["failed"]) == (1, 1, 0)
            assert engine["acceptance"] is not None
    assert "coupled against greedy drafting" in shown
