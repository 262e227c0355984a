"""The chat body: ranges, messages, and how prompt and answer share the context."""

from __future__ import annotations

from typing import Any

import pytest

from specproxy.errors import ContextTooLong, InvalidRequest, ModelNotFound
from specproxy.server.api import ApiContext, parse_chat
from specproxy.vocabulary import SamplingParams

PREFIX = "<|im_start|>user\nHi<|im_end|>\n"


def test_plain_request(chat: Any, context: ApiContext) -> None:
    """Defaults: one choice, the API's sampling, all the room that the context leaves."""
    request = chat()
    prompt = request.prompts[0]
    assert prompt.text == PREFIX + "<|im_start|>assistant\n"
    assert prompt.ids == context.tokenizer.encode(prompt.text, special=False)
    assert prompt.max_tokens == 2048 - len(prompt.ids)
    assert request.params == SamplingParams()
    assert (request.n, request.seed, request.max_tokens, request.stream) == (1, None, None, False)
    assert (request.path, request.model, request.prompt_tokens) == ("/v1/chat/completions", "house", len(prompt.ids))


def test_every_sampling_field_arrives(chat: Any) -> None:
    """What the client asks for is what the engine is told."""
    request = chat(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.1, logit_bias={"5": -100, "7": 2.5}, min_tokens=3, stop_token_ids=[9, 9, 8],
        ignore_eos=True, logprobs=True, top_logprobs=5, max_tokens=7, seed=11,
    )  # fmt: skip
    assert request.params == SamplingParams(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.1, logit_bias={5: -100, 7: 2.5}, min_tokens=3, stop_token_ids=(9, 8),
        ignore_eos=True, logprobs=5,
    )  # fmt: skip
    assert (request.prompts[0].max_tokens, request.max_tokens, request.seed) == (7, 7, 11)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e300}, "repetition_penalty"),
        ({"logit_bias": {"8192": 1}}, "logit_bias.8192"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a"] * 10_000}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 5000}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [1, 8192]}, "stop_token_ids[1]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"stream_options": {}}, "stream_options"),
        ({"prediction": {"type": "image", "content": "x"}}, "prediction.type"),
        ({"prediction": {"type": "content", "content": [{"type": "image_url"}]}}, "prediction.content[0]"),
        ({"prediction": {"type": "content", "content": "a b c d " * 2000}}, "prediction.content"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"specproxy": {"speed": 1}}, "specproxy.speed"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ],
)
def test_out_of_range(chat: Any, fields: dict[str, Any], param: str) -> None:
    """A value out of range is a 400 that names the field."""
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param in caught.value.message


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hi", "messages"),
        ([1], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}], "messages[1].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "file"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "x", "name": 5}], "messages[0].name"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "messages[0].tool_calls[0].function"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_bad_messages(chat: Any, messages: Any, param: str) -> None:
    """A message of the wrong shape is named with its place."""
    with pytest.raises(InvalidRequest) as caught:
        chat(messages=messages)
    assert caught.value.param == param


def test_models(chat: Any) -> None:
    """Aliases are served under the model's own name; no name is a 400, an unknown one a 404."""
    assert chat(model="gpt-4o-mini").model == "house"
    with pytest.raises(InvalidRequest, match="must provide a model"):
        chat(model=None)
    with pytest.raises(ModelNotFound) as caught:
        chat(model="gpt-9")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_text_parts_and_roles(chat: Any) -> None:
    """Text parts are joined by a line break; a developer message is a system message to this template."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = chat(messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert request.prompts[0].text.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n"
    )


def test_history_with_tool_calls(chat: Any) -> None:
    """Arguments given as a JSON string reach the template as an object, today's form and the older one alike."""
    call = {"name": "w", "arguments": '{"a": 1}'}
    new = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
    ]
    old = [
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "w", "content": "sun"},
    ]
    text = chat(messages=new).prompts[0].text
    assert '<tool_call>{"name": "w", "arguments": {"a": 1}}</tool_call>' in text
    assert chat(messages=old).prompts[0].text == text


def test_refusal_is_what_the_assistant_said(chat: Any) -> None:
    """An assistant message without content has its refusal as text."""
    request = chat(messages=[{"role": "assistant", "content": None, "refusal": "I cannot."}])
    assert "I cannot." in request.prompts[0].text


def test_continue_final_message(chat: Any) -> None:
    """The prompt ends with the open message; no generation prompt follows."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]
    request = chat(messages=messages, continue_final_message=True)
    assert request.prompts[0].text == PREFIX + "<|im_start|>assistant\nWell, "
    assert chat(add_generation_prompt=False).prompts[0].text == PREFIX


def test_template_variables(context: ApiContext) -> None:
    """Effort, verbosity and the request's own variables reach the template; the latter win."""
    from dataclasses import replace

    from specproxy.text.template import ChatTemplate

    template = ChatTemplate("{{ reasoning_effort }} {{ verbosity }} {{ mood }}")
    body = (
        b'{"model": "house", "messages": [{"role": "user", "content": "x"}], "reasoning_effort": "low",'
        b'"verbosity": "high", "chat_template_kwargs": {"mood": "fine", "verbosity": "none"}}'
    )
    assert parse_chat(body, replace(context, template=template)).prompts[0].text == "low none fine"
    with pytest.raises(InvalidRequest, match="no chat template"):
        parse_chat(body, replace(context, template=None))


def test_newer_limit_wins(chat: Any) -> None:
    """max_completion_tokens is used where both are given."""
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6


def test_context_too_long(chat: Any) -> None:
    """Prompt and wanted answer must fit together; OpenAI's wording, code and field."""
    num = chat().prompt_tokens
    assert chat(max_tokens=2048 - num).prompts[0].max_tokens == 2048 - num
    with pytest.raises(ContextTooLong) as caught:
        chat(max_tokens=2049 - num)
    assert caught.value.message == (
        f"This model's maximum context length is 2048 tokens. However, you requested 2049 tokens ({num} in the "
        f"messages, {2049 - num} in the completion). Please reduce the length of the messages or completion."
    )
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "context_length_exceeded", "messages")


def test_prompt_too_long(chat: Any) -> None:
    """A prompt that leaves no room is refused, and one that is hopeless without being tokenised."""
    for repeat, tokens in ((3000, r"\d+"), (400_000, "at least .*")):
        with pytest.raises(ContextTooLong, match=f"your messages resulted in {tokens} tokens"):
            chat(messages=[{"role": "user", "content": "word " * repeat}])


def test_seeds(chat: Any) -> None:
    """Any integer is a seed, reduced modulo 2^53 and never negative."""
    assert [chat(seed=seed).seed for seed in (0, 2**53 - 1, 2**53 + 5, -1, 10**30)] == [
        0,
        2**53 - 1,
        5,
        2**53 - 1,
        10**30 % 2**53,
    ]


def test_nearly_zero_temperature_is_greedy(chat: Any) -> None:
    """Below 0.00001 the limit of the distribution is taken, which float32 could not divide its way to."""
    assert chat(temperature=1e-6).params.temperature == 0.0
    assert chat(temperature=1e-4).params.temperature == 1e-4


def test_top_k_without_effect(chat: Any) -> None:
    """-1, 0 and anything as large as the vocabulary keep all tokens."""
    assert [chat(top_k=k).params.top_k for k in (-1, 0, 8192, 10**30, 8191)] == [0, 0, 0, 0, 8191]


def test_prediction(chat: Any, context: ApiContext) -> None:
    """The predicted text arrives as tokens, parts joined as they are."""
    expected = context.tokenizer.encode("def f(): pass", special=False)
    parts = [{"type": "text", "text": "def f()"}, {"type": "text", "text": ": pass"}]
    assert chat(prediction={"type": "content", "content": "def f(): pass"}).prediction == expected
    assert chat(prediction={"type": "content", "content": parts}).prediction == expected
    assert chat(prediction={"type": "content", "content": ""}).prediction == []


def test_options_of_the_answer(chat: Any) -> None:
    """How the answer is to be written."""
    request = chat(
        stream=True, stream_options={"include_usage": True, "include_obfuscation": False}, stop=["a", "a", "b"],
        include_stop_str_in_output=True, skip_special_tokens=False, return_token_ids=True, cache_salt="s",
        metadata={"k": "v"}, service_tier="auto", n=2,
    )  # fmt: skip
    assert (request.stream, request.include_usage, request.continuous_usage) == (True, True, False)
    assert (request.stop, request.include_stop, request.skip_special_tokens) == (("a", "b"), True, False)
    assert (request.return_token_ids, request.metadata, request.service_tier) == (True, {"k": "v"}, "auto")
    assert request.num_choices == 2
