"""The loop's edges: a request without finite logits, background work, bad submissions, known prompts scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from specproxy.vocabulary import SamplingParams
from tests.support.driver import Driver

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture
def driver(assemble_engine: Callable[..., Driver]) -> Driver:
    """The house model as served by default."""
    return assemble_engine()


def test_a_request_without_finite_logits_fails_alone(
    assemble_engine: Callable[..., Driver], mini: list[dict[str, Any]]
) -> None:
    """A token whose embedding is NaN ends its own request with an error; a neighbour's answer is what it was."""
    driver = assemble_engine(fresh=True, max_sequences=4)
    [expected] = driver.run([driver.submission(mini[0]["ids"], params=GREEDY)])
    weight = driver.engine.runner.model.stock.model.embed_tokens.weight
    bad = next(i for i in range(8000, 8192) if i not in mini[0]["ids"] and i not in expected.tokens)
    with torch.no_grad():
        weight[bad] = math.nan
    driver.engine.scheduler.pool.forget_idle()
    broken = driver.submission([*mini[1]["ids"], bad], params=GREEDY)
    failed, fine = driver.run([broken, driver.submission(mini[0]["ids"], params=GREEDY)])
    assert (failed.finish, failed.tokens) == ("error", [])
    assert "not finite" in str(failed.error)
    assert fine.visible() == expected.visible()
    assert driver.engine.scheduler.pool.used == 0


def test_background_work_waits_for_users(driver: Driver, mini: list[dict[str, Any]]) -> None:
    """While a user's sequence runs, a background one takes no step; afterwards it is answered like any other."""
    background = driver.submission(mini[2]["ids"], params=GREEDY, work="background")
    user = driver.submission(mini[3]["ids"], params=GREEDY)
    ended: list[str] = []
    driver.engine.submit(background)
    driver.engine.submit(user)
    while not driver.engine.idle:
        for delta in driver.engine.step():
            if delta.tokens and delta.id == background.id:
                assert ended == [user.id]
            if delta.finish_reason:
                ended.append(delta.id)
    assert ended == [user.id, background.id]


def test_work_on_a_prompt_is_announced_before_it_begins(driver: Driver, mini: list[dict[str, Any]]) -> None:
    """An empty delta comes first, in a step that computes nothing, and for a second one not before its own turn."""
    asked = [driver.submission(mini[i]["ids"], params=GREEDY) for i in (4, 5)]
    for submission in asked:
        driver.engine.submit(submission)
    [first] = driver.engine.step()
    assert (first.id, first.tokens, driver.engine.scheduler.find(asked[0].id).computed) == (asked[0].id, [], 0)
    said = [first]
    while not driver.engine.idle:
        said += driver.engine.step()
    assert [delta.id for delta in said if not delta.tokens] == [submission.id for submission in asked]
    assert said.index(next(d for d in said if d.id == asked[1].id)) > 1


@pytest.mark.parametrize("prompt", [[], [8192], [1] * 2049])
def test_a_prompt_that_cannot_be_is_refused(driver: Driver, prompt: list[int]) -> None:
    """No token, an id the tokenizer does not know, or more tokens than the context: one error, and nothing runs."""
    [answer] = driver.run([driver.submission(prompt)])
    assert answer.finish == "error"
    assert "prompt" in str(answer.error)


def test_scoring_a_prompt_gives_its_logprobs(driver: Driver, mini: list[dict[str, Any]]) -> None:
    """Prompt logprobs are the stock model's, one for each token after the first, also across chunks."""
    ids = (mini[0]["ids"] * 8)[:300]
    params = SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=0)
    [answer] = driver.run([driver.submission(ids, params=params)])
    with torch.no_grad():
        logits = driver.engine.runner.model.stock(torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
    expected = torch.log_softmax(logits, -1)[torch.arange(299), torch.tensor(ids[1:])]
    assert [entry.token for entry in answer.prompt_logprobs] == ids[1:]
    assert torch.tensor([entry.logprob for entry in answer.prompt_logprobs]).sub(expected).abs().mean() < 0.05
    assert (answer.finish, answer.tokens) == ("length", [])
