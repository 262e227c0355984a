"""Extraction of facts from request bodies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.policy.facts import Facts, extract_facts

CHAT = "/v1/chat/completions"


def facts(headers: dict[str, str] | None = None, **body: Any) -> Facts:
    """Facts of a chat request."""
    return extract_facts(CHAT, headers or {}, body)


def test_a_bare_request_has_almost_no_facts() -> None:
    """Whatever the client does not send is absent."""
    bare = facts(messages=[{"role": "user", "content": "hi"}])
    assert bare == Facts(path=CHAT, prompt="hi", conversation=bare.conversation)


def test_neutral_values_count_as_absent() -> None:
    """Clients send defaults explicitly; they say the same as nothing."""
    neutral = facts(tools=[], functions=[], response_format={"type": "text"}, logprobs=False, metadata={})
    assert neutral.tools is None
    assert neutral.response_format is None
    assert neutral.logprobs is None
    assert neutral.metadata == {}


def test_parameters_are_read_as_sent() -> None:
    """Numbers, flags, the newer name of max_tokens, and header names in lower case."""
    seen = facts(
        {"X-Team": "Support"},
        temperature=0,
        top_p=0.9,
        max_tokens=5,
        max_completion_tokens=7,
        n=2,
        stream=True,
        logprobs=True,
        top_logprobs=3,
        model="house",
    )
    assert (seen.temperature, seen.top_p, seen.max_tokens, seen.n) == (0.0, 0.9, 7, 2)
    assert (seen.stream, seen.logprobs, seen.model) == (True, 3, "house")
    assert seen.headers == {"x-team": "Support"}


def test_tools_of_both_generations() -> None:
    """Names of the offered functions, and the choice among them."""
    new = facts(
        tools=[{"type": "function", "function": {"name": "a"}}, {"type": "custom", "custom": {"name": "b"}}],
        tool_choice={"type": "function", "function": {"name": "a"}},
    )
    assert (new.tools, new.tool_choice) == (("a", "b"), "a")
    old = facts(functions=[{"name": "f"}], function_call={"name": "f"})
    assert (old.tools, old.tool_choice) == (("f",), "f")
    allowed = facts(tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}})
    assert allowed.tool_choice == "allowed_tools"
    assert facts(tool_choice="required").tool_choice == "required"


def test_the_last_user_message_and_the_conversation_so_far() -> None:
    """Its text parts joined; user messages and tool calls counted."""
    seen = facts(
        messages=[
            {"role": "system", "content": "s"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": None, "tool_calls": [{}, {}]},
            {"role": "tool", "content": "r"},
            {"role": "assistant", "function_call": {"name": "f"}},
            {
                "role": "user",
                "content": [{"type": "text", "text": "two "}, {"type": "image_url"}, {"type": "text", "text": "2"}],
            },
            {"role": "assistant", "content": "prefix"},
        ]
    )
    assert (seen.prompt, seen.turns, seen.tool_calls) == ("two 2", 2, 3)


def test_completions_have_a_prompt() -> None:
    """The text, the last of several, or nothing where it is token ids."""
    for prompt, text in (("a", "a"), (["a", "b"], "b"), ([1, 2], ""), ([[1], [2]], ""), (None, "")):
        assert extract_facts("/v1/completions", {}, {"prompt": prompt}).prompt == text


def test_prediction_text() -> None:
    """A string or text parts."""
    assert facts(prediction={"type": "content", "content": "x"}).prediction == "x"
    parts = [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]
    assert facts(prediction={"type": "content", "content": parts}).prediction == "xy"
    assert facts(prediction={"type": "content", "content": ""}).prediction == ""


def test_metadata_values_are_text() -> None:
    """Numbers and flags compare as they are written in JSON."""
    seen = facts(metadata={"a": "x", "b": 1, "c": True, "d": None, "e": 1.5})
    assert seen.metadata == {"a": "x", "b": "1", "c": "true", "e": "1.5"}


def test_a_conversation_keeps_its_key_over_its_turns() -> None:
    """The cache key, else the client's id, else what its start has in common: key, system and first user message."""
    start = [{"role": "system", "content": "s"}, {"role": "user", "content": "one"}]
    later = [*start, {"role": "assistant", "content": "a"}, {"role": "user", "content": "two"}]
    first = facts(messages=start).conversation
    assert first == facts(messages=later, temperature=1).conversation
    assert first != facts(messages=start[1:]).conversation
    assert first != extract_facts(CHAT, {}, {"messages": start}, api_key="other").conversation
    assert facts(messages=start, metadata={"conversation_id": "c"}).conversation == "c"
    assert facts(messages=start, metadata={"conversation_id": "c"}, prompt_cache_key="k").conversation == "k"


def test_overrides_are_kept_unparsed() -> None:
    """Whether they are allowed is the route's business."""
    seen = facts({"X-SpecProxy-Speculate": "off"}, specproxy={"speculate": "ngram"})
    assert (seen.override_header, seen.override_body) == ("off", {"speculate": "ngram"})


_FIELDS = [
    *("model", "messages", "prompt", "tools", "functions", "tool_choice", "function_call", "temperature", "top_p"),
    *("max_tokens", "max_completion_tokens", "n", "stream", "logprobs", "top_logprobs", "prediction", "metadata"),
    *("response_format", "prompt_cache_key", "specproxy", "role", "content", "text", "function", "name", "type"),
]
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(_FIELDS), _json, max_size=8))
def test_no_body_breaks_the_extraction(body: dict[str, Any]) -> None:
    """Wrong types are absent here; refusing them is the request parser's business."""
    seen = extract_facts(CHAT, {}, body)
    assert isinstance(seen.prompt, str)
    assert isinstance(seen.conversation, str)


@pytest.mark.parametrize("value", [True, "1", [1], {"a": 1}])
def test_wrong_types_of_numbers_are_absent(value: object) -> None:
    """A flag is no number."""
    seen = facts(temperature=value, max_tokens=value, n=value)
    assert (seen.temperature, seen.max_tokens, seen.n) == (None, None, None)
