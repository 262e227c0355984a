"""The completion body: forms of a prompt, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest

from specproxy.errors import ContextTooLong, InvalidRequest
from specproxy.server.api import ApiContext


def test_plain_request(completion: Any, context: ApiContext) -> None:
    """Defaults: one choice of 16 tokens, no template."""
    request = completion()
    assert request.prompts[0].ids == context.tokenizer.encode("Hi", special=True)
    assert (request.prompts[0].max_tokens, request.max_tokens, request.path) == (16, None, "/v1/completions")


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("Hi", [["Hi"]]),
        (["Hi", "there"], [["Hi"], ["there"]]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["Hi", [3]], [["Hi"], [3]]),
    ],
)
def test_forms_of_a_prompt(completion: Any, context: ApiContext, prompt: Any, ids: Any) -> None:
    """A string, token ids, or a list of either."""
    expected = [context.tokenizer.encode(each[0], special=True) if isinstance(each[0], str) else each for each in ids]
    assert [each.ids for each in completion(prompt=prompt).prompts] == expected


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ([], "prompt"),
        ("", "prompt"),
        ([[]], "prompt"),
        ({"a": 1}, "prompt"),
        (5, "prompt"),
        ([1.5], "prompt[0]"),
        ([None], "prompt[0]"),
        ([1, "a"], "prompt[1]"),
        ([True], "prompt[0]"),
        ([8192], "prompt[0]"),
        ([0, -1], "prompt[1]"),
        ([0, 10**40], "prompt[1]"),
        ([[1], [9999]], "prompt[1][0]"),
        ([["a"]], "prompt[0][0]"),
    ],
)
def test_bad_prompts(completion: Any, prompt: Any, param: str) -> None:
    """Anything else is refused with its place."""
    with pytest.raises(InvalidRequest) as caught:
        completion(prompt=prompt)
    assert caught.value.param == param


def test_own_fields(completion: Any) -> None:
    """Echo with logprobs asks for those of the prompt; best_of may only repeat n; logprobs go to 20."""
    request = completion(echo=True, logprobs=3, n=2, best_of=2)
    assert (request.params.logprobs, request.params.prompt_logprobs, request.echo) == (3, 3, True)
    assert completion(logprobs=0).params.prompt_logprobs is None
    for fields, param in (({"best_of": 3}, "best_of"), ({"logprobs": 21}, "logprobs"), ({"suffix": "x"}, "suffix")):
        with pytest.raises(InvalidRequest) as caught:
            completion(**fields)
        assert caught.value.param == param


def test_no_answer_at_all(completion: Any) -> None:
    """max_tokens 0 is allowed here, to score a prompt; such a prompt may fill the context."""
    assert completion(max_tokens=0, echo=True).prompts[0].max_tokens == 0
    assert completion(max_tokens=0, prompt=[5] * 2048).prompt_tokens == 2048


def test_context(completion: Any) -> None:
    """The default length shrinks to the room there is; a wanted one is refused where it does not fit."""
    assert completion(prompt=[5] * 2040).prompts[0].max_tokens == 8
    with pytest.raises(ContextTooLong, match=r"2056 tokens \(2040 in your prompt; 16 for the completion\)"):
        completion(prompt=[5] * 2040, max_tokens=16)
    with pytest.raises(ContextTooLong, match="your prompt resulted in 2048 tokens"):
        completion(prompt=[5] * 2048)


def test_number_of_sequences(completion: Any) -> None:
    """Prompts times choices are bounded."""
    with pytest.raises(InvalidRequest, match="2048"):
        completion(prompt=[[1]] * 100, n=100)


def test_echo_of_token_ids(completion: Any, context: ApiContext) -> None:
    """Token ids are echoed as their text."""
    ids = context.tokenizer.encode("Hi there", special=False)
    assert completion(prompt=ids, echo=True).prompts[0].text == "Hi there"
