"""The house model's greedy answers are transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from specproxy.vocabulary import SamplingParams
from tests.support.driver import Driver


def check(driver: Driver, records: list[dict[str, Any]], max_tokens: int) -> int:
    """Tokens compared: each answer against generate, each logprob against a stock forward, within 1e-4."""
    stock, compared = driver.engine.runner.model.stock, 0
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=0)
    answers = driver.run([driver.submission(r["ids"], params=params) for r in records])
    for record, answer in zip(records, answers, strict=True):
        prompt = torch.tensor([record["ids"]])
        with torch.no_grad():
            expected = stock.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_tokens, do_sample=False
            )[0, prompt.shape[1] :].tolist()
            assert answer.tokens == expected, record["id"]
            whole = torch.tensor([record["ids"] + answer.tokens])
            logits = stock(whole, use_cache=False).logits[0, prompt.shape[1] - 1 : -1]
        logprobs = torch.log_softmax(logits.float(), -1)
        ours = torch.tensor([entry.logprob for entry in answer.logprobs])
        theirs = logprobs[torch.arange(len(answer.tokens)), torch.tensor(answer.tokens)]
        assert torch.allclose(ours, theirs, atol=1e-4), record["id"]
        compared += len(answer.tokens)
    return compared


def test_greedy_answers_equal_generate(assemble_engine: Callable[..., Driver], mini: list[dict[str, Any]]) -> None:
    """In float32, token for token, with logprobs within 1e-4, on a third of the bundled mix."""
    assert check(assemble_engine(dtype="float32"), mini[::3], 32) > 300


@pytest.mark.identity_full
@pytest.mark.timeout(1800)
def test_greedy_answers_equal_generate_on_200_prompts(
    assemble_engine: Callable[..., Driver], routes: list[dict[str, Any]]
) -> None:
    """The same on 200 prompts of the route mix."""
    assert check(assemble_engine(dtype="float32"), routes[:: len(routes) // 200][:200], 48) > 4000
